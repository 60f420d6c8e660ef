"""The command: exit status, one sentence for a mistake, and processes that share the listening."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stable_audio_tools.cli.data import dedup as main
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.path_lists import read_path_list

SCRIPT = Path(__file__).parents[2] / "scripts" / "dac_hist_dedup.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files, the last of which is the first at half its level; and a text that is no audio."""
    for number in range(3):
        noise = np.random.default_rng(number).standard_normal((60, 1)).repeat(1_600, 1).reshape(1, -1)
        time = np.arange(noise.shape[1]) / 16_000
        sound = (0.2 * np.sin(2 * np.pi * 110 * 2 ** (np.round(3 * noise) / 12) * time)).astype(np.float32)
        audio_io.write(tmp_path / "audio" / f"{number}.wav", sound, 16_000)
    audio_io.write(tmp_path / "audio" / "copy.wav", 0.5 * audio_io.read(tmp_path / "audio" / "0.wav").samples, 16_000)
    (tmp_path / "audio" / "broken.wav").write_bytes(b"text")
    return tmp_path / "audio"


def flags(folder: Path) -> list[str]:
    return ["--dataset-dir", str(folder), "--codec", "spectral", "--output-dir", str(folder.parent / "out")]


def test_a_run_tells_what_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags(folder), "--keep", "first", "--sweep", "0.999"]) == 0
    printed = capsys.readouterr().out
    assert "4 files: 1 copies in 1 groups, 1 could not be analysed" in printed
    assert "threshold 0.999, candidate pairs" in printed
    assert read_path_list(folder.parent / "out" / "exclude_paths.txt") == ["audio:copy.wav"]


def test_leaks_give_status_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags(folder), "--against", str(folder)]) == 1
    assert f"4 files are also in {folder}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--similarity-threshold", "2"], "--similarity-threshold: expected more than 0 and at most 1, got 2"),
        (["--limit", "0"], "--limit: expected at least 1, got 0"),
        (["--codebook-size", "1024"], "--codebook-size: this codec has codebooks of 729"),
        (["--against", "absent.json"], "absent.json: no such file"),
        (["--similarity-device", "cuda:99x"], "unknown device 'cuda:99x'"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(folder), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_two_processes_write_what_one_writes(folder: Path) -> None:
    assert main([*flags(folder)]) == 0
    out = folder.parent / "out"
    one = {
        name: (out / name).read_bytes() for name in ("exclude_paths.txt", "similar_pairs.jsonl", "failed_files.json")
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*flags(folder), "--features-dir", str(folder.parent / "shared")]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {name: (out / name).read_bytes() for name in one} == one
    assert json.loads((out / "summary.json").read_text())["encoded_files"] == 4
    assert len(list((folder.parent / "shared").rglob("*.npz"))) == 4
