"""`reconstruct_audios.py` by itself: refusals before the weights, what is kept, several processes."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import SmallModel, small_model

from stable_audio_tools.cli import evaluate
from stable_audio_tools.cli.model_choice import ModelChoice
from stable_audio_tools.data import audio_io

ROOT = Path(__file__).parents[2]
RATE = 22050


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model("tiny_autoencoder", tmp_path_factory.mktemp("models"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


def write_clip(path: Path, seconds: float = 0.3) -> None:
    audio_io.write(path, torch.rand(2, round(seconds * RATE)) - 0.5, RATE)


def words(model: SmallModel, clips: Path, *more: str) -> list[str]:
    flags = ["--model-config", model.config, "--ckpt-path", model.weights, "--device", "cpu"]
    return [str(w) for w in (*flags, "--audio-dir", clips, "--output-dir", clips.parent / "out", *more)]


def rows(folder: Path) -> list[str]:
    """Files of which `metrics.csv` tells, without the names of columns, medians and means."""
    return [row[0] for row in csv.reader((folder / "metrics.csv").read_text().splitlines())][1:-2]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--frame-duration", "inf", "--frame-duration: expected a finite number, got 'inf'"),
        ("--frame-duration", "nan", "--frame-duration: expected a finite number, got 'nan'"),
        ("--overlap-rate", "nan", "--overlap-rate: expected a finite number, got 'nan'"),
        ("--batch-size", "0", "--batch-size: expected at least 1, got 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_one_sentence(
    model: SmallModel, clips: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, message: str
) -> None:
    write_clip(clips / "a.wav")
    assert evaluate.reconstruct(words(model, clips, flag, value)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (clips.parent / "out").exists()


@pytest.mark.parametrize(
    ("folder", "file", "message"),
    [
        (None, "out", "out: cannot be created as a folder (File exists)"),
        (
            "out/metrics.csv",
            None,
            "out/metrics.csv: is a folder, and a file of that name must be written; move the folder",
        ),
        (
            "out/metrics.svg",
            None,
            "out/metrics.svg: is a folder, and a file of that name must be written; move the folder",
        ),
        (
            "out/manifest.jsonl",
            None,
            "out/manifest.jsonl: is a folder, and a file of that name must be written; move the folder",
        ),
        ("out/a.wav", None, "out/a.wav: is a folder, and a file of that name must be written; move the folder"),
    ],
)
def test_an_output_folder_that_cannot_be_is_refused_before_weights_are_read(
    model: SmallModel,
    clips: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: str | None,
    file: str | None,
    message: str,
) -> None:
    write_clip(clips / "a.wav")
    if folder is not None:
        (clips.parent / folder).mkdir(parents=True)
    if file is not None:
        (clips.parent / file).write_text("")
    monkeypatch.setattr(ModelChoice, "load", lambda *_: pytest.fail("the weights were read"))
    assert evaluate.reconstruct(words(model, clips)) == 2
    assert capsys.readouterr().err == f"error: {clips.parent / message}\n"


def test_lines_tell_what_was_made_and_what_was_kept(
    model: SmallModel, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clips.parent / "out"
    for name in ("a.wav", "b.wav"):
        write_clip(clips / name)
    assert evaluate.reconstruct(words(model, clips)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [f"wrote {out / 'a.wav'}", f"wrote {out / 'b.wav'}"]
    write_clip(clips / "a.wav")
    assert evaluate.reconstruct(words(model, clips, "--json")) == 0
    *told, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(line["file"], line["new"]) for line in told] == [("a.wav", True), ("b.wav", False)]
    (clips / "a.wav").write_bytes(b"x" * 100)
    assert evaluate.reconstruct(words(model, clips)) == 1
    first, summary = capsys.readouterr().out.splitlines()
    assert first.startswith(f"kept {out / 'b.wav'}: si_sdr") and summary.startswith("mean over 1 files: ")
    assert rows(out) == ["b.wav"], "what was made of the earlier a.wav says nothing of this one"


def test_a_silent_original_is_named_and_not_in_the_averages(
    model: SmallModel, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(clips / "a.wav")
    audio_io.write(clips / "silent.wav", torch.zeros(2, 6000), RATE)
    assert evaluate.reconstruct(words(model, clips)) == 0
    *_, silent, summary = capsys.readouterr().out.splitlines()
    assert silent == "silent originals, not in the averages: silent.wav"
    assert summary.startswith("mean over 1 files: ") and "(median " in summary
    table = list(csv.DictReader((clips.parent / "out" / "metrics.csv").read_text().splitlines()))
    assert [row["file"] for row in table] == ["a.wav", "silent.wav", "median", "mean"]
    assert table[0]["mrstft"] == table[2]["mrstft"] == table[3]["mrstft"] != table[1]["mrstft"]


def torchrun(arguments: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """Two processes -> exit status, and what they print."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, str(ROOT / "reconstruct_audios.py"), *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_torchrun_ends_when_all_are_done_and_tells_it_once(model: SmallModel, clips: Path) -> None:
    """The second process has a file that cannot be read, and nothing else to do; in the end not even that."""
    names = ["a.wav", "c.wav", "e.wav"]
    for name in names:
        write_clip(clips / name, seconds=20)
    for name in ("b.wav", "d.wav"):
        (clips / name).write_bytes(b"x" * 100)
    for is_new in (True, False):
        status, (*lines, summary) = torchrun(words(model, clips))
        assert status == 1 and [line["file"] for line in lines] == names
        assert all(line["new"] is is_new for line in lines)
        assert (summary["files"], summary["failed"]) == (3, 2)
        assert rows(clips.parent / "out") == names
    for name in ("b.wav", "c.wav", "d.wav", "e.wav"):
        (clips / name).unlink()
    status, (line, summary) = torchrun(words(model, clips))
    assert status == 0 and line["new"] is False and summary["files"] == 1
