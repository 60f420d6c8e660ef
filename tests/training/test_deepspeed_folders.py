"""Checkpoints of DeepSpeed are folders with a file for each rank: they are found, kept, deleted and refused as such."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.training.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run_folder import checkpoint_mark, checkpoints_in, newest_whole_checkpoint


def write_folder(folder: Path, ranks: int = 2) -> Path:
    parts = folder / "checkpoint"
    parts.mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    states = {"module": {}, "buffer_names": [], "param_shapes": [{"diffusion.w": torch.Size([3])}], "global_step": 40}
    torch.save(states, parts / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        flat = {"single_partition_of_fp32_groups": [torch.ones(2)], "zero_stage": 2, "partition_count": [2]}
        torch.save({"optimizer_state_dict": flat}, parts / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def test_recover_finds_the_newest_whole_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = tmp_path / "run" / "20260101-000000" / "checkpoints"
    for age, step in enumerate((30, 20, 10)):
        folder = write_folder(checkpoints / f"epoch=0-step={step}.ckpt", ranks=1 if step == 30 else 2)
        os.utime(folder, (1000 - age, 1000 - age))
    assert newest_whole_checkpoint(tmp_path, "run") == checkpoints / "epoch=0-step=20.ckpt"
    assert "step=30.ckpt is broken" in caplog.text and "written by 2 ranks, but the files of 1 are here" in caplog.text
    damaged = checkpoints / "epoch=0-step=20.ckpt" / "checkpoint" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = checkpoint_mark(checkpoints / "epoch=0-step=20.ckpt")
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert newest_whole_checkpoint(tmp_path, "run") == checkpoints / "epoch=0-step=10.ckpt"
    assert checkpoint_mark(checkpoints / "epoch=0-step=20.ckpt") != whole


def test_old_folders_are_deleted(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / f"epoch=0-step={step}.ckpt") for step in (1, 2, 3)]
    Checkpointing(tmp_path, 1, 2, {})._prune(folders[-1])
    assert checkpoints_in(tmp_path) == folders[1:]


def test_other_strategies_refuse_them_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only --strategy deepspeed resumes it"):
        AtomicCheckpointIO().load_checkpoint(write_folder(tmp_path / "epoch=0-step=1.ckpt"))


def test_a_checkpoint_whose_weights_deepspeed_loads_itself_is_taken() -> None:
    checkpoint: dict[str, Any] = {"global_step": 3}
    TrainingModule().on_load_checkpoint(checkpoint)
    assert checkpoint == {"global_step": 3}
