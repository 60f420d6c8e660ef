"""check-data through the real command line: what it prints, writes and returns."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from stable_audio_tools.cli.main import main

RATE = 22_050


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABLE_AUDIO_TOOLS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_dataset(root: Path, name: str, clips: dict[str, int]) -> Path:
    """Clips of noise by their seeds; a negative seed is silence."""
    folder = root / name
    folder.mkdir()
    for clip, seed in clips.items():
        wave = 0.1 * (seed >= 0) * np.random.default_rng(abs(seed)).standard_normal((8_000, 2))
        sf.write(folder / f"{clip}.wav", wave, RATE)
        (folder / f"{clip}.txt").write_text("a caption")
    config = root / f"{name}.json"
    config.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": name, "path": str(folder)}]}))
    return config


def test_a_good_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(write_dataset(tmp_path, "train", {"a": 1, "b": 2}))]) == 0
    printed = capsys.readouterr().out
    assert "2 files" in printed and "no problems were found" in printed


def test_findings_as_a_table_as_json_and_as_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_dataset(tmp_path, "train", {"a": 1, "b": 1, "quiet": -1})
    (tmp_path / "train" / "broken.wav").write_text("no audio")
    listed = tmp_path / "quarantine.txt"
    assert main(["check-data", str(config), "--quarantine", str(listed), "--num-workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in ("unreadable: 1", "silent: 1", "duplicate: 1", "quarantine.txt: 3 files"))
    assert {Path(line.split("\t")[0]).name for line in listed.read_text().splitlines()} == {
        "b.wav",
        "broken.wav",
        "quiet.wav",
    }
    assert main(["check-data", str(config), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and report["counts"] == {"unreadable": 1, "silent": 1, "duplicate": 1}
    cleaned = json.loads(config.read_text()) | {"quarantine_file": str(listed)}
    config.write_text(json.dumps(cleaned))
    assert main(["check-data", str(config)]) == 0


def test_a_large_report_is_read_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts come first, then five examples of each kind; links are named once and counted once."""
    config = write_dataset(tmp_path, "train", {"good": 1, **{f"quiet{number}": -1 - number for number in range(8)}})
    (tmp_path / "train" / "link.wav").symlink_to("good.wav")
    (tmp_path / "train" / "link.txt").write_text("a caption")
    assert main(["check-data", str(config)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["9 files, 0.00 hours, 22050 Hz, stereo", "1 links to files that are already counted"]
    assert "silent: 8" in lines and "duplicate: 7" in lines
    start = lines.index("silent:")
    assert all("quiet" in line for line in lines[start + 1 : start + 6])
    assert lines[start + 6] == "  and 3 more; --json lists them all"


def test_rates_are_judged_within_each_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two collections of different rates are both in order; one file that differs from its neighbours is not."""
    first = json.loads(write_dataset(tmp_path, "first", {"a": 1, "b": 2, "c": 3}).read_text())
    second = json.loads(write_dataset(tmp_path, "second", {"d": 4, "e": 5}).read_text())
    for name in ("d", "e"):
        sf.write(tmp_path / "second" / f"{name}.wav", sf.read(tmp_path / "second" / f"{name}.wav")[0], 48_000)
    both = tmp_path / "both.json"
    both.write_text(json.dumps({**first, "datasets": [*first["datasets"], *second["datasets"]]}))
    assert main(["check-data", str(both)]) == 0
    printed = capsys.readouterr().out
    assert "22050 Hz (3), 48000 Hz (2)" in printed and "unusual rate" not in printed
    sf.write(tmp_path / "first" / "c.wav", sf.read(tmp_path / "first" / "c.wav")[0], 8_000)
    assert main(["check-data", str(both)]) == 0
    assert "c.wav: 8000 Hz, where most have 22050 Hz" in capsys.readouterr().out


def test_splits_and_the_rate_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_dataset(tmp_path, "train", {"a": 1, "b": 2})
    val = write_dataset(tmp_path, "val", {"c": 2})
    assert main(["check-data", str(train), "--against", str(val)]) == 1
    assert "split leak" in capsys.readouterr().out
    model = tmp_path / "model.json"
    model.write_text('{"sample_rate": 44100}')
    assert main(["check-data", str(train), "--model-config", str(model)]) == 0
    assert "22050 Hz is below the model's 44100 Hz" in capsys.readouterr().out


def test_mistakes_end_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(tmp_path / "absent.json")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.json'}: no such file\n"
