"""Captions without code: sidecars, tables, templates and tags."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.index import PackedStrings
from stable_audio_tools.data.metadata import Table, read_rows, read_sidecar
from stable_audio_tools.data.prompts import Captions, add_prompt, caption_problems

INFO = {"genre": "techno", "mood": ["dark", "driving"], "tags": "808, kick; loud", "bpm": 130, "empty": ""}


def prompt(captions: Captions, info: dict[str, object] = INFO, seed: int = 0) -> str | None:
    made = dict(info)
    add_prompt(made, captions, random.Random(seed))
    value = made.get("prompt")
    assert value is None or isinstance(value, str)
    return value


def test_text_and_caption_become_the_prompt_unless_there_is_one() -> None:
    assert prompt(Captions(), {"text": "a"}) == "a"
    assert prompt(Captions(), {"caption": "b", "prompt": "c"}) == "c"
    assert prompt(Captions(rename={"title": "prompt"}), {"title": "d", "text": "e"}) == "d"
    assert prompt(Captions(), {"bpm": 3}) is None


def test_templates_need_their_fields() -> None:
    captions = Captions(templates=["{genre}, {mood}, {bpm} bpm", "{genre} {absent}", "{empty}!"])
    assert {prompt(captions, seed=seed) for seed in range(20)} == {"techno, dark, driving, 130 bpm"}
    assert prompt(captions, {"prompt": "kept"}) == "kept"


def test_one_of_several_templates_is_drawn() -> None:
    captions = Captions(templates=["{genre} a", "{genre} b"])
    counts = Counter(prompt(captions, seed=seed) for seed in range(200))
    assert set(counts) == {"techno a", "techno b"} and min(counts.values()) > 60


def test_tags_are_pooled_shuffled_dropped_and_cut() -> None:
    assert prompt(Captions(tags=["genre", "mood"])) == "techno, dark, driving"
    shuffled = {prompt(Captions(tags=["genre", "mood"], shuffle_tags=True), seed=seed) for seed in range(50)}
    assert len(shuffled) == 6  # every order of three
    sizes = Counter(
        len(str(prompt(Captions(tags=["genre", "mood"], tag_dropout=0.5), seed=s)).split(", ")) for s in range(400)
    )
    assert set(sizes) == {1, 2, 3} and sizes[1] > sizes[3]
    assert prompt(Captions(tags=["mood", "genre"], max_tags=2)) == "dark, driving"
    assert prompt(Captions(tags=["tags"], separator="; ")) == "808, kick; loud"
    assert prompt(Captions(tags=["prompt"], shuffle_tags=True), {"prompt": "x, y"}, seed=1) in ("x, y", "y, x")


def test_casing_and_dropout_have_their_probabilities() -> None:
    captions = Captions(lowercase=0.3, uppercase=0.2, prompt_dropout=0.25)
    counts = Counter(prompt(captions, {"prompt": "Aa"}, seed) for seed in range(2_000))
    assert counts[""] == pytest.approx(500, abs=80)  # four standard deviations
    assert counts["aa"] == pytest.approx(450, abs=80)
    assert counts["AA"] == pytest.approx(300, abs=70)


def test_options_that_cannot_be_meant() -> None:
    wrong = Captions(templates=["no field"], max_tags=0, lowercase=0.7, uppercase=0.7)
    assert [key for key, _ in caption_problems(wrong)] == ["templates[0]", "max_tags", "uppercase"]


# ------------------------------------------------------------------ sidecars


def test_sidecars(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" from text \n")
    assert read_sidecar(tmp_path / "a.wav") == {"prompt": "from text"}
    (tmp_path / "a.json").write_text('\ufeff{"bpm": 90}')
    assert read_sidecar(tmp_path / "a.wav") == {"prompt": "from text", "bpm": 90}
    assert read_sidecar(tmp_path / "b.wav") == {}


@pytest.mark.parametrize(("text", "sentence"), [("{", "is not valid JSON"), ("[1]", "holds no JSON object, but list")])
def test_broken_sidecars(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadItem, match=rf"a.json {sentence}"):
        read_sidecar(tmp_path / "a.wav")


# ------------------------------------------------------------------ tables

ROWS = [
    {"audio_path": "x/1.wav", "text": "first", "bpm": 120, "code": "909"},
    {"audio_path": "x/2.wav", "text": "second", "bpm": None, "code": "x1"},
]


def write_table(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
        parquet.write_table(sys.modules["pyarrow"].Table.from_pylist(ROWS), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join("" if cell is None else str(cell) for cell in row.values()) for row in ROWS]
        path.write_text("\n".join([mark.join(ROWS[0]), *lines]))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("beside", [True, False])
def test_rows_find_their_files(tmp_path: Path, suffix: str, beside: bool) -> None:
    root = tmp_path / "data"
    root.mkdir()
    path = write_table((root if beside else tmp_path) / f"table{suffix}")
    table = Table(path, str(root), PackedStrings.of(["x/1.wav", "x/2.wav", "y.wav"]))
    assert table.listed().tolist() == [True, True, False]
    assert table.row(0, 0) == {"text": "first", "bpm": 120, "code": "909"}
    assert table.row(1, 5) == {"text": "second", "code": "x1"}
    assert table.row(2, 0) == {}


def test_numbers_in_a_csv_stay_text_in_columns_of_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,prompt,bpm,gain\na.wav,909,120,-3.5\n")
    assert dict(read_rows(tmp_path / "t.csv"))[2] == {"path": "a.wav", "prompt": "909", "bpm": 120, "gain": -3.5}


def test_absolute_paths_and_several_rows_for_one_file(tmp_path: Path) -> None:
    rows = [{"path": str(tmp_path / "a.wav"), "text": "one"}, {"file_name": "./a.wav", "text": "two"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = Table(tmp_path / "t.jsonl", str(tmp_path), PackedStrings.of(["a.wav"]))
    assert {table.row(0, draw)["text"] for draw in range(2)} == {"one", "two"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.jsonl", '{"path": "a"}\n{oops', "t.jsonl: line 2 is not valid JSON"),
        (
            "t.jsonl",
            '{"text": "a"}',
            "found the columns 'text', but none names the files; the path",
        ),
        ("t.csv", "path;text\na.wav;x\n", r"found the columns 'path;text', .*; separate columns by commas, not by ';'"),
        ("t.csv", "path,text\n,x\n", "row 2 names no file; its path is empty"),
        ("t.json", "{}", "a list of objects"),
        ("t.xml", "", "must be .jsonl, .json, .csv, .tsv or .parquet"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        Table(tmp_path / name, str(tmp_path), PackedStrings.of(["a"]))
    with pytest.raises(ConfigError, match="metadata_path: no file"):
        Table(tmp_path / "none.jsonl", str(tmp_path), PackedStrings.of(["a"]))
