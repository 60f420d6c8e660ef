"""The flags of pre_encode.py: every published one is there, and mistakes end in a sentence."""

import sys
from pathlib import Path

import pytest

from stable_audio_tools.cli import data
from stable_audio_tools.cli.main import main

NEEDED = ["--dataset-config", "d.json", "--output-path", "out"]


def test_every_published_flag_is_accepted_with_its_default() -> None:
    plain = data.encode.parser().parse_args(NEEDED)
    published = {
        "model_config": None,
        "ckpt_path": None,
        "model_half": False,
        "batch_size": 1,
        "sample_size": 1_320_960,
        "is_discrete": False,
        "num_nodes": 1,
        "num_workers": 4,
        "strategy": "auto",
        "limit_batches": None,
        "shuffle": False,
    }
    assert published.items() <= vars(plain).items()
    words = [
        "--model-half",
        "--is-discrete",
        "--shuffle",
        "--strategy",
        "ddp",
        "--limit-batches",
        "3",
        "--num-nodes",
        "2",
    ]
    given = data.encode.parser().parse_args([*NEEDED, *words])
    assert given.model_half and given.is_discrete and given.shuffle and given.limit_batches == 3


def test_mistakes_end_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pre-encode", *NEEDED]) == 2
    assert "give --model-config and --ckpt-path" in capsys.readouterr().err
    assert main(["data", "encode", *NEEDED, "--batch-size", "0", "--limit", "0"]) == 2
    error = capsys.readouterr().err
    assert "--batch-size: expected at least 1, got 0" in error and "--limit: expected at least 1, got 0" in error


def test_one_process_is_started_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that `launch` starts are told their places as torchrun would."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "$RANK $LOCAL_RANK $WORLD_SIZE $6" >> {tmp_path}/places\nexit $LOCAL_RANK\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("NODE_RANK", "1")
    assert data.launch(["--limit", "9"], processes=3, nodes=2) == 2, "the worst status is returned"
    assert sorted((tmp_path / "places").read_text().splitlines()) == [
        "3 0 6 9",
        "4 1 6 9",
        "5 2 6 9",
    ]
