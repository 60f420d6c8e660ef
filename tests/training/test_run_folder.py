"""Where a run's folder leads to."""

import logging
import os
from pathlib import Path

import pytest
import torch

from stable_audio_tools.training.run_folder import checkpoint_at


def saved(path: Path, at: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, path)
    os.utime(path, (at, at))
    return path


def test_a_run_stands_for_its_newest_whole_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = saved(tmp_path / "run" / "1" / "checkpoints" / "epoch=0-step=10.ckpt", at=1)
    second = saved(tmp_path / "run" / "1" / "checkpoints" / "epoch=0-step=20.ckpt", at=2)
    third = saved(tmp_path / "run" / "2" / "checkpoints" / "epoch=0-step=5.ckpt", at=3)
    assert checkpoint_at(tmp_path / "run") == third
    assert checkpoint_at(tmp_path / "run" / "1") == second
    second.write_bytes(b"cut short")
    with caplog.at_level(logging.WARNING):
        assert checkpoint_at(tmp_path / "run" / "1") == first
    assert "step=20.ckpt is broken" in caplog.text


def test_what_is_no_run_stands_for_itself(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.ckpt", at=1)
    deepspeed = tmp_path / "epoch=0-step=1.ckpt" / "checkpoint"
    deepspeed.mkdir(parents=True)
    assert checkpoint_at(file) == file
    assert checkpoint_at(deepspeed.parent) == deepspeed.parent
    assert checkpoint_at(tmp_path / "missing") == tmp_path / "missing"
