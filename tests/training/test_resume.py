"""A run that is killed and resumed ends with the same bits as one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.small_training import differences, flags, last

from stable_audio_tools.cli import train

WHOLE = "*/*/checkpoints/*step=[0-9].ckpt"
NAMES = ("tiny_autoencoder", "tiny_diffusion_cond", "tiny_lm")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [3, 5])  # an epoch has five batches: in its middle, and at its end
def test_resumed_run_is_bit_identical(name: str, at: int, write_config: Any, dataset: Path, tmp_path: Path) -> None:
    config = write_config(name)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    validation = ("--val-dataset-config", str(dataset), "--val-every", str(at), "--limit-val-batches", "1")
    assert train.main(flags(config, dataset, whole, 8, *validation)) == 0
    resumed = ["--ckpt-path", str(last(whole, at))]
    assert train.main(flags(config, dataset, parts, 8, *validation, *resumed)) == 0
    assert differences(last(whole, 8), last(parts, 8)) == []


# One of them in every run; the others are resumed above without a kill.
@pytest.mark.parametrize(
    "name", [name if name == "tiny_diffusion_cond" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_killed_run_recovers_to_the_same_bits(name: str, write_config: Any, dataset: Path, tmp_path: Path) -> None:
    config, steps = write_config(name), 12
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train.main(flags(config, dataset, whole, steps)) == 0
    command = [sys.executable, "-m", "stable_audio_tools.cli.main", "train"]
    process = subprocess.Popen(
        [*command, *flags(config, dataset, killed, 10_000)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(killed.glob(WHOLE))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = max(int(path.stem.partition("step=")[2]) for path in killed.glob(WHOLE))
    assert reached >= 3
    assert train.main(flags(config, dataset, killed, steps, "--recover")) == 0
    assert differences(last(whole, steps), last(killed, steps)) == []
