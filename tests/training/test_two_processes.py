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
DiffusionCondTrainingWrapper.draw_timesteps = lambda self, clean, *_: clean.abs().mean((1, 2)) % 1
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


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from stable_audio_tools.core.config import load
from stable_audio_tools.models.factory import create_model_from_config

dist.init_process_group("gloo")
config = load(sys.argv[1])
torch.manual_seed(0)
whole, sharded = create_model_from_config(config), create_model_from_config(config)
sharded.load_state_dict(whole.state_dict())
fully_shard(sharded.model, mesh=dist.init_device_mesh("cpu", (2,)))
generator = torch.Generator().manual_seed(dist.get_rank())
metadata = [{"sound": "drums", "seconds_total": 3}]
for step in range(2):
    latents = torch.randn(1, 16, 32, generator=generator)
    for model in (whole, sharded):
        model.zero_grad()
        model(latents, torch.tensor([0.5]), cond=model.conditioner(metadata, "cpu")).square().mean().backward()
for (name, own), (_, other) in zip(whole.model.named_parameters(), sharded.model.named_parameters()):
    if own.grad is None:
        assert other.grad is None, name
        continue
    dist.all_reduce(own.grad, op=dist.ReduceOp.SUM)
    torch.testing.assert_close(other.grad.full_tensor(), own.grad / 2, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_of_a_sharded_transformer_are_those_of_a_whole_one(write_config: Any, tmp_path: Path) -> None:
    """FSDP by torch alone, because Lightning offers its strategy on GPUs only."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    config = str(write_config("tiny_diffusion_cond"))
    done = subprocess.run([*start, config], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
