"""Tables of MTG-Jamendo, and prompts from them, by modules and by JSON alone."""

import json
import random
import runpy
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stable_audio_tools
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.jamendo.tables import find_track, read_raw_table, seeded_prompt, track_number
from stable_audio_tools.data.metadata import read_rows

MODULES = Path(stable_audio_tools.__file__).parent / "configs" / "dataset_configs" / "custom_metadata"
Loader = Callable[..., Any]


@pytest.fixture
def small(published: Path, tmp_path: Path) -> Path:
    """Tables above a few tracks, as the guide lays them out; one track is of the kind that Song Describer has."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("raw_30s.tsv", "raw.meta.tsv"):
        shutil.copy(published / name, folder / name)
    for path in (published / "raw_30s" / "audio").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(folder / "audio", filter="data")
    (folder / "audio" / "14" / "214.mp3").rename(folder / "audio" / "14" / "214.2min.mp3")
    return folder


def visits(config: dict[str, Any], epochs: int = 3, seed: int = 0) -> dict[str, list[str]]:
    loader = create_dataloader_from_config(
        {"dataset_type": "audio_dir", "drop_last": False, **config},
        batch_size=2,
        sample_size=4096,
        sample_rate=22_050,
        num_workers=0,
        shuffle=True,
        seed=seed,
    )
    found: dict[str, list[str]] = {}
    for _ in range(epochs):
        for _, infos in loader:
            for info in infos:
                found.setdefault(info["relpath"], []).append(info["prompt"])
    return found


def by_module(small: Path, module: str, **keys: Any) -> dict[str, Any]:
    entry = {"id": "jamendo", "path": str(small / "audio"), "custom_metadata_module": str(MODULES / module)}
    return {"datasets": [entry], **keys}


def by_json(small: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    entry = {"id": "jamendo", "path": str(small / "audio"), "metadata_path": str(small / "raw_30s.tsv")}
    return {"datasets": [entry], "captions": {"recipe": recipe}}


def test_rows_by_hand(small: Path) -> None:
    row = find_track(small / "audio" / "14" / "314.mp3")
    assert row["genre"] == ["ambient", "newage"] and row["instrument"] == ["piano"] and row["tag"] == ["slow"]
    assert (row["title"], row["artist"], row["album"], row["year"]) == ("Title 314", "The Band", "First", "2007")
    assert find_track(str(small / "audio" / "01" / "301.mp3"))["mood"] == ["film score"]
    assert dict(read_rows(small / "raw_30s.tsv"))[2]["path"] == "01/101.mp3"


@pytest.mark.parametrize(
    ("name", "number"),
    [("track_0000214", 214), ("14/214.mp3", 214), ("214.2min.mp3", 214), ("0214.low.mp3", 214), ("song2.mp3", None)],
)
def test_numbers_of_tracks(name: str, number: int | None) -> None:
    assert track_number(name) == number


@pytest.mark.parametrize("module", ["custom_md_fma.py", "custom_md_fma_simple.py"])
def test_modules_write_prompts_that_change_with_visits_and_repeat_with_seeds(small: Path, module: str) -> None:
    config = by_module(small, module)
    first = visits(config)
    assert len(first) == 6 and all(len(prompts) == 3 for prompts in first.values())
    assert first == visits(config)
    assert first != visits(config, seed=1)
    assert any(len(set(prompts)) > 1 for prompts in first.values())
    assert not any("mp3" in prompt or not prompt for prompts in first.values() for prompt in prompts)
    if module == "custom_md_fma_simple.py":
        assert set(first["14/314.mp3"]) <= {
            f"{a}, piano" for a in ("ambient", "newage", "ambient, newage", "newage, ambient")
        }


def test_json_alone_does_the_same(small: Path) -> None:
    words = {"fast", "punkrock", "Title 214", "The Band", "First", "2007"}
    prompts = [text for epoch in range(20) for text in visits(by_json(small, {}), 1, epoch)["14/214.2min.mp3"]]
    bare = {part.rpartition(": ")[2].lower() for prompt in prompts for part in prompt.split(", ")}
    assert bare == {word.lower() for word in words}
    assert any(": " in prompt for prompt in prompts) and any(": " not in prompt for prompt in prompts)
    assert any(prompt.isupper() for prompt in prompts) or any(prompt.islower() for prompt in prompts)
    whole = visits(
        by_json(
            small,
            {
                "fields": ["artist", "year"],
                "keep": 1.0,
                "labels": 1.0,
                "shuffle": False,
                "lowercase": 0.0,
                "uppercase": 0.0,
            },
        )
    )
    assert set(whole["14/214.2min.mp3"]) == {"artist: The Band, year: 2007"}


def test_a_track_without_a_row_is_counted_and_has_no_prompt_of_its_path(small: Path) -> None:
    shutil.copy(small / "audio" / "14" / "314.mp3", small / "audio" / "14" / "999.mp3")
    found = visits(by_module(small, "custom_md_fma.py"), 1)
    assert "14/999.mp3" not in found and len(found) == 6
    with pytest.raises(AudioError, match=r"999.mp3.*raw_30s.tsv has no row for this track"):
        visits(by_module(small, "custom_md_fma.py", on_bad_item="raise"), 1)
    with pytest.raises(ConfigError, match=r"no raw_30s.tsv or raw.tsv in any folder above it"):
        find_track(small.parent / "elsewhere" / "1.mp3")


def test_evaluation_prompts_are_fixed_by_track_and_seed(small: Path) -> None:
    path = small / "audio" / "14" / "314.mp3"
    state = random.getstate()
    assert seeded_prompt(path, 3) == seeded_prompt(path, 3)
    assert len({seeded_prompt(path, seed) for seed in range(20)}) > 5
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("track_1\ta\tb\t01/1.mp3\tlong", "the duration 'long' is not a number"),
        ("track_1\ta", "has 2 columns, expected at least 5"),
    ],
)
def test_a_damaged_table_is_told_by_its_line(small: Path, line: str, sentence: str) -> None:
    with (small / "raw_30s.tsv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ConfigError, match=f"raw_30s.tsv: line 8.*{sentence}"):
        list(read_raw_table(small / "raw_30s.tsv"))


def test_recipes_that_cannot_be(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"captions.recipe.uppercase: lowercase and uppercase"):
        visits(by_json(small, {"lowercase": 0.7, "uppercase": 0.7}))
    with pytest.raises(ConfigError, match=r"captions.recipe.max_values"):
        visits(by_json(small, {"max_values": 0}))


# ------------------------------------------------------------------ generated audio


@pytest.fixture
def generated(small: Path) -> Path:
    folder = small.parent / "generated"
    folder.mkdir()
    for name in ("query_0000.mp3", "query_0001.mp3"):
        shutil.copy(small / "audio" / "14" / "314.mp3", folder / name)
    return folder


def test_generated_audio_gets_the_prompts_of_its_manifest(generated: Path) -> None:
    module = runpy.run_path(str(MODULES / "custom_md_generated_from_manifest.py"))
    items = [
        {"filename": f"query_000{n}.mp3", "prompt": f"prompt {n}", "seconds_start": 0, "seconds_total": 47.5}
        for n in (0, 1)
    ]
    (generated / "prompt_manifest.json").write_text(json.dumps({"items": items}))
    info = module["get_custom_metadata"]({"path": str(generated / "query_0001.mp3")}, None)
    assert info == {"prompt": "prompt 1", "seconds_start": 0, "seconds_total": 47.5}


def test_generated_audio_gets_the_prompts_that_generate_wrote(generated: Path) -> None:
    lines = [{"file": f"query_000{n}.mp3", "conditions": {"prompt": f"prompt {n}", "seconds_total": 4}} for n in (0, 1)]
    (generated / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"path": str(generated), "custom_metadata_module": str(MODULES / "custom_md_generated_from_manifest.py")}
    found = visits({"datasets": [entry], "random_crop": False, "augment_phase": False}, 1)
    assert found == {"query_0000.mp3": ["prompt 0"], "query_0001.mp3": ["prompt 1"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"no manifest.jsonl or prompt_manifest.json in any folder above it"),
        ('{"file": "other.mp3", "conditions": {"prompt": "x"}}\n', "manifest.jsonl does not name this file"),
        ('{"file": "query_0000.mp3", "conditions": {}}\n', "query_0000.mp3 has no prompt"),
        ("none\n", "not a manifest of generated files"),
    ],
)
def test_no_prompt_is_an_error_and_never_an_empty_prompt(generated: Path, text: str | None, sentence: str) -> None:
    module = runpy.run_path(str(MODULES / "custom_md_generated_from_manifest.py"))
    if text is not None:
        (generated / "manifest.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        module["get_custom_metadata"]({"path": str(generated / "query_0000.mp3")}, None)
