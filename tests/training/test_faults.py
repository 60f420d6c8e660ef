"""What goes wrong at night: the run goes on or stops with one sentence, and nothing that was saved is lost."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.models.checkpoints import export_weights
from stable_audio_tools.training.diffusion import DiffusionCondDemoCallback, DiffusionCondTrainingWrapper

NAME = "tiny_diffusion_cond"


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss of the n-th batches is not a number."""
    original, seen = DiffusionCondTrainingWrapper.training_step, iter(range(100))

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if next(seen) in steps else loss

    monkeypatch.setattr(DiffusionCondTrainingWrapper, "training_step", step)


def weights_are_finite(path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_nan_is_kept_from_the_weights(
    action: str, write_config: Any, run_training: Any, checkpoint_of: Any, monkeypatch: Any, capfd: Any
) -> None:
    poison(monkeypatch, 2)
    flags = ("--max-steps", "4", "--checkpoint-every", "1", "--nonfinite", action)
    folder = run_training(write_config(NAME), *flags)
    said = capfd.readouterr().err
    assert "the gradient is not finite; files: " in said and ".flac" in said
    assert ("went back to the weights" in said) == (action == "rollback")
    assert weights_are_finite(checkpoint_of(folder))


def test_nan_can_stop_the_run(write_config: Any, run_training: Any, monkeypatch: Any, capfd: Any) -> None:
    poison(monkeypatch, 1)
    run_training(write_config(NAME), "--max-steps", "4", "--nonfinite", "stop", status=2)
    assert "error: step 1: the gradient is not finite" in capfd.readouterr().err


def test_a_demo_that_raises_does_not_end_the_run(
    write_config: Any, run_training: Any, checkpoint_of: Any, monkeypatch: Any, capfd: Any
) -> None:
    def make(*_: Any) -> Any:
        raise RuntimeError("no sound today")

    monkeypatch.setattr(DiffusionCondDemoCallback, "make", make)
    folder = run_training(write_config(NAME), "--max-steps", "2")
    assert "the demo at step 1 failed: RuntimeError: no sound today" in capfd.readouterr().err
    assert checkpoint_of(folder).name.endswith("step=2.ckpt")


def test_full_disk_costs_one_checkpoint(write_config: Any, run_training: Any, monkeypatch: Any, capfd: Any) -> None:
    save, calls = torch.save, iter(range(100))

    def full(*arguments: Any, **options: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    folder = run_training(write_config(NAME), "--max-steps", "3", "--checkpoint-every", "1")
    assert "step=2.ckpt was not written" in capfd.readouterr().err
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "epoch=0-step=1.ckpt",
        "epoch=0-step=3.ckpt",
    ]


@pytest.mark.parametrize(
    ("whole", "rest"),
    [(1, r"the newest whole one is .*epoch=0-step=1\.ckpt"), (0, "this run has saved nothing")],
)
def test_a_run_whose_last_checkpoint_is_lost_fails(
    whole: int, rest: str, write_config: Any, run_training: Any, monkeypatch: Any, capfd: Any
) -> None:
    save, calls = torch.save, iter(range(100))

    def full(*arguments: Any, **options: Any) -> None:
        if next(calls) >= whole:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    run_training(write_config(NAME), "--max-steps", "2", "--checkpoint-every", "1", status=2)
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"epoch=0-step=2\.ckpt: the last checkpoint was not written \(not written, the disk is full; .*\); " + rest,
        last,
    )


def test_sigterm_saves_and_leaves(write_config: Any, run_training: Any, checkpoint_of: Any, monkeypatch: Any) -> None:
    original = DiffusionCondTrainingWrapper.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionCondTrainingWrapper, "training_step", step)
    before = signal.getsignal(signal.SIGTERM)
    folder = run_training(write_config(NAME), "--max-steps", "50")
    assert checkpoint_of(folder).name.endswith("step=3.ckpt")
    assert signal.getsignal(signal.SIGTERM) == before


def test_recover_passes_over_a_broken_checkpoint(write_config: Any, run_training: Any, capfd: Any) -> None:
    config = write_config(NAME)
    folder = run_training(config, "--max-steps", "4", "--checkpoint-every", "1")
    newest = folder / "checkpoints" / "epoch=0-step=4.ckpt"
    newest = newest if newest.exists() else next((folder / "checkpoints").glob("*step=4.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert run_training(config, "--max-steps", "6", "--recover") == folder
    said = capfd.readouterr().err
    assert "step=4.ckpt is broken" in said and "continuing from" in said and "step=3.ckpt" in said
    assert len(list(folder.glob("metrics*/metrics.csv"))) == 2  # what the first part logged is still there


def test_weights_are_no_run_to_resume(
    write_config: Any, run_training: Any, checkpoint_of: Any, tmp_path: Path, capfd: Any
) -> None:
    config, exported = write_config(NAME), tmp_path / "weights.safetensors"
    export_weights(checkpoint_of(run_training(config, "--max-steps", "1")), exported)
    run_training(config, "--max-steps", "2", "--ckpt-path", str(exported), status=2)
    assert "--pretrained-ckpt-path" in capfd.readouterr().err
    run_training(config, "--max-steps", "1", "--pretrained-ckpt-path", str(exported))


def test_dead_reader_process_is_named(write_config: Any, run_training: Any, monkeypatch: Any, capfd: Any) -> None:
    from stable_audio_tools.data.sources.audio_dir import SampleDataset

    monkeypatch.setattr(SampleDataset, "load", lambda *_: os._exit(9))
    run_training(write_config(NAME), "--max-steps", "2", "--num-workers", "1", status=2)
    assert "error: a process that reads data died" in capfd.readouterr().err


def test_dry_run_makes_a_demo_and_stops(write_config: Any, run_training: Any, capfd: Any) -> None:
    folder = run_training(write_config(NAME), "--dry-run")
    assert "dry run: one step took" in capfd.readouterr().err
    assert list((folder / "demos").rglob("*.wav"))
    assert not list(folder.rglob("*.ckpt")), "nothing that --recover would go on from"
    # A later run of this process, or one that it starts, makes a folder of its own.
    assert not any(str(folder) in value for value in os.environ.values())
