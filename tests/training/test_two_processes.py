"""Two processes with half the batch each take the step of one process with all of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Noise as a function of the data: then it does not matter which process draws it.
LAUNCHER = """
import sys
import torch
from stable_audio_tools.cli import train
from stable_audio_tools.training.diffusion import DiffusionCondTrainingWrapper

torch.randn_like = lambda x, **_: torch.sin(1000 * x)
DiffusionCondTrainingWrapper.draw_timesteps = lambda self, clean: clean.abs().mean((1, 2)) % 1
sys.exit(train.main(sys.argv[1:]))
"""


def without_chance(config: dict[str, Any]) -> None:
    section = config["training"]
    del section["demo"]
    if config["model_type"].startswith("diffusion") or config["model_type"] == "lm":
        section["cfg_dropout_prob"] = 0.0
    if config["model_type"] == "autoencoder":  # these two are ratios of sums over a batch, not means over its items
        section["loss_configs"]["spectral"]["weights"] = {"mrstft": 0.0}
        section["loss_configs"]["discriminator"]["weights"]["feature_matching"] = 0.0
    for entry in section["optimizer_configs"].values():
        # Adam turns rounding of tiny gradients into whole steps; plain descent keeps differences in proportion.
        entry["optimizer"] = {"type": "SGD", "config": {"lr": 0.01}}


def trained(processes: int, batch: int, config: Path, dataset: Path, folder: Path) -> dict[str, torch.Tensor]:
    launcher = folder.with_suffix(".py")
    launcher.write_text(LAUNCHER)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words: list[Any] = ["--model-config", config, "--dataset-config", dataset, "--save-dir", folder]
    words += ["--max-steps", 4, "--batch-size", batch, "--num-workers", 0, "--logger", "none", "--accelerator", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": ""}
    done = subprocess.run([*start, str(launcher), *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*/*/checkpoints/*.ckpt")
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


# The last batch of ten clips is uneven: with batches of 4 or of two times 2, two clips are left over.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_autoencoder", "tiny_diffusion_cond", "tiny_lm"])
def test_two_halves_make_a_whole(name: str, write_config: Any, dataset: Path, tmp_path: Path) -> None:
    config = write_config(name, without_chance)
    one = trained(1, 4, config, dataset, tmp_path / "one")
    two = trained(2, 2, config, dataset, tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        # float32 sums in another order, over four steps
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
