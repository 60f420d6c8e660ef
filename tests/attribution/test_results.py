"""From features to a matrix, tables and a page, by the command; files of the original scripts too."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from support.small_attribution import ORIGIN, write_features

from stable_audio_tools.attribution.report import write_report
from stable_audio_tools.attribution.results import (
    Scores,
    prompt_of,
    read_labels,
    read_scores,
    read_tags,
    save_scores,
    source_of,
    sum_by_label,
    write_tables,
)
from stable_audio_tools.cli import attribute
from stable_audio_tools.core.config import save
from stable_audio_tools.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training items, in two shards, and two queries, all of them audio files."""
    ids = [str(tmp_path / f"{name}.wav") for name in ("a1", "a2", "b1", "b2", "b3", "none")]
    queries = [str(tmp_path / f"q{n}.wav") for n in range(2)]
    for number, name in enumerate([*ids, *queries]):
        noise = np.random.default_rng(number).standard_normal(4000)
        sf.write(name, 0.1 * noise * (1 + number), 8000)
    write_features(tmp_path / "train0", ids[:4], 0, **ORIGIN)
    write_features(tmp_path / "train1", ids[4:], 1, **ORIGIN)
    write_features(tmp_path / "query", queries, 2, **ORIGIN)
    table = "path,artist\na1.wav,Ann\na2.wav,Ann\nb1.wav,Bob\nb2.wav,Bob\nb3.wav,Bob\n"
    (tmp_path / "artists.csv").write_text(table)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    train = ["--train-feature-paths", str(folder / "train0"), str(folder / "train1")]
    return [*train, "--query-feature-path", str(folder / "query"), "--output-score-path", str(folder / "scores"), *more]


def rows_of(folder: Path, *names: str) -> np.ndarray:
    return np.concatenate([np.fromfile(folder / name, np.float32).reshape(-1, 6) for name in names]).astype(np.float64)


def test_the_matrix_is_the_formula(folder: Path) -> None:
    assert attribute.score(words(folder, "--lambda-reg", "0.5")) == 0
    phi, query = rows_of(folder, "train0", "train1"), rows_of(folder, "query")
    unit = (phi**2).sum() / len(phi)
    wanted = query @ np.linalg.inv(phi.T @ phi + 0.5 * unit * np.eye(6)) @ phi.T
    raw = np.fromfile(folder / "scores", np.float32).reshape(2, 6)
    assert np.allclose(raw, wanted, rtol=1e-5)
    scores = read_scores(folder / "scores")
    assert np.array_equal(scores.values, raw) and len(scores.train_ids) == 6 and scores.about["f"] == "loss"
    assert attribute.score(words(folder, "--lambda-reg", "0.5", "--negate")) == 0
    assert np.allclose(np.fromfile(folder / "scores", np.float32).reshape(2, 6), -wanted, rtol=1e-5)


def test_files_of_the_original_scripts(tmp_path: Path) -> None:
    """Their meta data, their absolute regulariser, ids where the meta data says."""
    about = {"used_dim": 4, "K": 10, "t_strategy": "uniform", "num_train_steps": 1000, "f": "l2-norm", "model_id": 0}
    phi = write_features(tmp_path / "train", [f"t{n}" for n in range(5)], 0, **about)[:, :4].astype(np.float64)
    query = write_features(tmp_path / "query", ["q"], 1, **about)[:, :4].astype(np.float64)
    (tmp_path / "train.ids.txt").rename(tmp_path / "elsewhere.txt")
    meta = json.loads((tmp_path / "train.meta.json").read_text())
    save({**meta, "ids_path": str(tmp_path / "elsewhere.txt")}, tmp_path / "train.meta.json")
    flags = ["--train-feature-paths", str(tmp_path / "train"), "--train-meta-paths", str(tmp_path / "train.meta.json")]
    flags += ["--query-feature-path", str(tmp_path / "query"), "--query-meta-path", str(tmp_path / "query.meta.json")]
    flags += ["--output-score-path", str(tmp_path / "s"), "--output-meta-path", str(tmp_path / "s.json")]
    assert attribute.score([*flags, "--lambda-reg", "100", "--query-batch-size", "1"]) == 0
    wanted = query @ np.linalg.inv(phi.T @ phi + 100 * np.eye(4)) @ phi.T
    assert np.allclose(np.fromfile(tmp_path / "s", np.float32), wanted[0], rtol=1e-5)
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["lambda_scale"] == "absolute" and told["used_dim"] == 4


@pytest.mark.parametrize("method", ["dot", "cosine", "similarity", "random"])
def test_baselines(method: str, folder: Path) -> None:
    cache = ["--embedding-cache", str(folder / "cache")]
    assert attribute.score(words(folder, "--method", method, *cache)) == 0
    values = np.asarray(read_scores(folder / "scores").values)
    assert values.shape == (2, 6) and np.isfinite(values).all() and values.std() > 0
    if method in ("cosine", "similarity"):
        assert np.abs(values).max() <= 1 + 1e-6


def test_an_ensemble(folder: Path) -> None:
    assert (
        attribute.score(words(folder, "--method", "dot", "--also", *[str(folder / "train"), str(folder / "query")]))
        == 2
    )
    ids = [name for part in ("train0", "train1") for name in (folder / f"{part}.ids.txt").read_text().splitlines()]
    write_features(folder / "train", ids, 5, **{**ORIGIN, "weights": "v"})
    queries = (folder / "query.ids.txt").read_text().splitlines()
    write_features(folder / "other", queries, 6, **{**ORIGIN, "weights": "v"})
    assert (
        attribute.score(words(folder, "--method", "dot", "--also", str(folder / "train"), str(folder / "other"))) == 0
    )
    wanted = rows_of(folder, "query") @ rows_of(folder, "train0", "train1").T
    wanted += rows_of(folder, "other") @ rows_of(folder, "train").T
    assert np.allclose(read_scores(folder / "scores").values, wanted, atol=1e-5)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "audio":
            self.sources.append(dict(attrs)["src"])


def test_tables_and_page(folder: Path) -> None:
    out = folder / "report"
    tables = ["--report-dir", str(out), "--top-k", "3", "--labels", str(folder / "artists.csv")]
    assert attribute.score(words(folder, *tables)) == 0
    values = np.asarray(read_scores(folder / "scores").values)
    with (out / "top.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    ids = read_scores(folder / "scores").train_ids
    assert rows[3]["item"] == ids[int(values[1].argmax())] and float(rows[3]["score"]) == pytest.approx(values[1].max())
    told = json.loads((out / "top.json").read_text())
    assert [len(items) for items in told["queries"].values()] == [3, 3] and told["about"]["method"] == "ridge"
    labelled = json.loads((out / "by_artist.json").read_text())["queries"]
    first = {entry["item"]: entry["score"] for entry in next(iter(labelled.values()))}
    assert first["Ann"] == pytest.approx(values[0, :2].sum(), rel=1e-5) and set(first) == {"Ann", "Bob"}
    page = Page((out / "index.html").read_text())
    assert len(page.sources) == 2 * (1 + 5 + 5)
    assert all((out / source).is_file() for source in page.sources)


def test_the_page_plays_what_latents_were_made_from(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(json.dumps({"path": str(tmp_path / "song.mp3")}))
    (tmp_path / "1.json").write_text("[]")
    scores = Scores(np.array([[1.0, 2.0]]), ("q.wav",), (str(tmp_path / "0.npy"), str(tmp_path / "1.npy")))
    write_report(scores, tmp_path / "index.html")
    sources = Page((tmp_path / "index.html").read_text()).sources
    assert sources.count("song.mp3") == 2 and len(sources) == 3
    page = (tmp_path / "index.html").read_text()
    assert page.count("song.mp3</figcaption>") == 2 and "0.npy</figcaption>" not in page, "named as what is heard"


def test_queries_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    scores = Scores(np.array([[1.0, 2.0], [2.0, 1.0]]), ("q.wav", "q.wav"), ("a.wav", "b.wav"))
    write_report(scores, tmp_path / "index.html")
    played = [Path(source).name[0] for source in Page((tmp_path / "index.html").read_text()).sources]
    assert "".join(played) == "qbaab" + "qabba", "the query, the best, the least"
    write_tables(scores, tmp_path, "top", 1)
    queries = json.loads((tmp_path / "top.json").read_text())["queries"]
    assert {query: lines[0]["item"] for query, lines in queries.items()} == {"q.wav": "b.wav", "q.wav (2)": "a.wav"}


@pytest.fixture
def encoded(folder: Path) -> Path:
    """The training items as latents: two crops of a1, one of each other, with metadata as of pre_encode.py."""
    names = ["a1", "a1", "b1", "b2", "b3", "none"]
    (folder / "lat").mkdir()
    ids = [str(folder / "lat" / f"{number:03d}.npy") for number in range(6)]
    for name, item in zip(names, ids):
        np.save(item, np.zeros((2, 3), np.float32))
        about = {"path": str(folder / f"{name}.wav"), "relpath": f"{name}.wav", "prompt": f"a piece, {name}"}
        Path(item).with_suffix(".json").write_text(json.dumps(about))
    write_features(folder / "train0", ids[:4], 0, **ORIGIN)
    write_features(folder / "train1", ids[4:], 1, **ORIGIN)
    return folder


def test_latents_are_known_by_the_audio_that_they_were_made_from(encoded: Path) -> None:
    out = encoded / "report"
    tables = ["--report-dir", str(out), "--labels", str(encoded / "artists.csv")]
    assert attribute.score(words(encoded, *tables)) == 0
    scores = read_scores(encoded / "scores")
    with (out / "top.csv").open() as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert reader.fieldnames == ["query", "rank", "item", "score", "source", "prompt"]
    told = json.loads((out / "top.json").read_text())["queries"]
    for row in (rows[0], told[scores.query_ids[0]][0]):
        best = scores.train_ids[int(np.argmax(scores.values[0]))]
        about = json.loads(Path(best).with_suffix(".json").read_text())
        assert (row["item"], row["source"], row["prompt"]) == (best, about["path"], about["prompt"])
    sums = json.loads((out / "by_artist.json").read_text())["queries"][scores.query_ids[0]]
    values = np.asarray(scores.values[0], np.float64)
    assert {line["item"]: line["score"] for line in sums} == {
        "Ann": pytest.approx(values[:2].sum()),
        "Bob": pytest.approx(values[2:5].sum()),
    }
    assert set(sums[0]) == {"rank", "item", "score"}, "a label has no audio"


def test_latents_sound_like_the_audio_that_they_were_made_from(
    encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = words(encoded, "--method", "similarity", "--embedding-cache", str(encoded / "cache"))
    assert attribute.score(flags) == 0
    values = np.asarray(read_scores(encoded / "scores").values)
    assert np.isfinite(values).all() and np.array_equal(values[:, 0], values[:, 1]) and values[0].std() > 0
    (encoded / "lat" / "002.json").unlink()
    assert attribute.score(flags) == 2
    told = capsys.readouterr().err
    assert "002.npy: cannot be embedded" in told and "the file given as path in the .json beside them" in told


def test_what_files_beside_an_item_tell(tmp_path: Path) -> None:
    song, latents = str(tmp_path / "song.wav"), str(tmp_path / "0.npy")
    assert (source_of(song), prompt_of(song)) == (song, None)
    assert (source_of(latents), prompt_of(latents), source_of(""), prompt_of("")) == (None, None, None, None)
    (tmp_path / "song.txt").write_text("a song\n")
    (tmp_path / "0.json").write_text(json.dumps({"path": song, "caption": "latents"}))
    assert (source_of(song), prompt_of(song)) == (song, "a song")
    assert (source_of(latents), prompt_of(latents)) == (song, "latents")


def test_labels(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [str(folder / "x" / "1.wav"), str(folder / "y" / "1.wav"), "plain.wav"]
    table = folder / "t.csv"
    table.write_text("path,artist\nx/1.wav,Ann\nplain.wav,Bob\nother.wav,Cid\n")
    assert read_labels(table, "artist", ids) == {ids[0]: "Ann", ids[2]: "Bob"}
    scores = Scores(np.array([[1.0, 2.0, 4.0]]), ("q",), tuple(ids))
    assert sum_by_label(scores, read_tags(table, "artist", ids)).values.tolist() == [[1.0, 4.0]]
    assert "1 of 3 training items have no label" in caplog.text
    with pytest.raises(ConfigError, match="no row of the table names a training item"):
        sum_by_label(scores, {})
    table.write_text("path,artist\n1.wav,Ann\n")
    with pytest.raises(ConfigError, match=re.escape("names '1.wav', which matches 2 items; write more of the path")):
        read_labels(table, "artist", ids)
    with pytest.raises(ConfigError, match="no column 'album'"):
        read_labels(table, "album", ids)


def test_an_item_counts_for_each_of_its_tags(tmp_path: Path) -> None:
    """Several rows, or a list in one; a row that is there twice counts once, an item that is there twice twice."""
    ids = ("a.wav", "b.wav", "a.wav", "c.wav")
    rows = [("a.wav", "slow"), ("a.wav", ["sad", "slow"]), ("b.wav", "slow"), ("c.wav", [])]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"path": path, "tag": tag}) + "\n" for path, tag in rows))
    tags = read_tags(table, "tag", ids)
    assert tags == {"a.wav": ("slow", "sad"), "b.wav": ("slow",)}
    summed = sum_by_label(Scores(np.array([[1.0, 2.0, 4.0, 8.0]]), ("q",), ids), tags)
    assert dict(zip(summed.train_ids, summed.values[0])) == {"slow": 7.0, "sad": 5.0}
    with pytest.raises(
        ConfigError, match=r"a.wav has several labels \('slow', 'sad' in column 'tag'\); keep one of them"
    ):
        read_labels(table, "tag", ids)


def test_features_that_say_nothing_end_in_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of a ranking, for every method that uses them."""
    rows = rows_of(folder, "query").astype(np.float32)
    for value, told in ((np.nan, "holds NaN or infinite numbers"), (0.0, "is all zero, so no item can be ranked")):
        rows[1] = value
        rows.tofile(folder / "query")
        for method in ("ridge", "dot", "cosine"):
            report = ["--method", method, "--report-dir", str(folder / "report")]
            assert attribute.score(words(folder, *report)) == 2
            assert f"q1.wav: its feature in {folder / 'query'} {told}" in capsys.readouterr().err
    assert not (folder / "report").exists() and not (folder / "scores").exists()
    write_features(folder / "query", ["q"], 2, **ORIGIN)
    np.full((2, 6), np.inf, np.float32).tofile(folder / "train1")
    assert attribute.score(words(folder)) == 2
    assert f"b3.wav: its feature in {folder / 'train0'} and 1 more holds NaN" in capsys.readouterr().err


def test_mistakes_end_in_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str) -> str:
        assert attribute.score(words(folder, *more)) == 2
        return capsys.readouterr().err

    assert "--lambda-reg: expected more than 0, got 0" in told("--lambda-reg", "0")
    assert "1 files for 2 --train-feature-paths" in told("--train-meta-paths", str(folder / "train0.meta.json"))
    assert "--labels: needs --report-dir" in told("--labels", str(folder / "artists.csv"))
    assert "--top-k: expected at least 1" in told("--top-k", "0")
    assert "--query-batch-size: expected at least 1" in told("--query-batch-size", "0")
    write_features(folder / "query", ["q0"], 2, **{**ORIGIN, "timesteps": [0]})
    assert "cannot be compared: timesteps [0, 500] and [0]" in told()
    write_features(folder / "train1", ["x"], 2, **{**ORIGIN, "seed": 1})
    assert "cannot be compared: seed 42 and 1" in told()
    write_features(folder / "train1", (folder / "train0.ids.txt").read_text().splitlines(), 2, **ORIGIN)
    assert "contain the same items more than once" in told()
    (folder / "train1.ids.txt").unlink()
    assert "missing; it names the items" in told()
    (folder / "train1.meta.json").unlink()
    assert "no such file" in told()


def test_scores_whose_files_are_not_whole(folder: Path) -> None:
    path = folder / "scores"
    save_scores(Scores(np.ones((1, 2)), ("q",), ("a", "b")), path)
    path.write_bytes(b"1234")
    with pytest.raises(ConfigError, match="does not hold 1 x 2 float32"):
        read_scores(path)
    save({}, folder / "scores.meta.json")
    with pytest.raises(ConfigError, match=r"pass a file written by dtrak_score\.py"):
        read_scores(path)
