"""Every kind of training, by each launcher and strategy: two processes that are killed and resumed end as one process.

Each process has half the batch of the one, dies with all others after its second checkpoint, and a new launch goes on:
two processes again where torchrun started them, a single one where `--devices` did.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launching import LIGHTNING, TORCHRUN, run, words
from support.small_training import arc_section, training_config

from stable_audio_tools.core.config import load
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.checkpoints.sharded import is_sharded, read_sharded
from stable_audio_tools.models.factory import create_model_from_config

KINDS = {
    "gan": "tiny_autoencoder",
    "diffusion": "tiny_diffusion_cond",
    "lm": "tiny_lm",
    "lora": "tiny_diffusion_cond",
    "arc": "tiny_diffusion_cond",
}
REFUSALS = {
    "gan": "--strategy fsdp: adversarial training steps two networks",
    "arc": "--strategy fsdp: adversarial training steps two networks",
    "lora": "--strategy fsdp: an adapter is too small to be divided",
}
STEPS = 4

# Noise and noise levels as functions of the data: then it does not matter which process draws them.
SCRIPT = """
import os, signal, sys
import torch
from stable_audio_tools.cli import train
from stable_audio_tools.training import arc
from stable_audio_tools.training.callbacks.checkpointing import Checkpointing
from stable_audio_tools.training.diffusion import DiffusionCondTrainingWrapper

torch.randn_like = lambda x, **_: torch.sin(1000 * x)
arc.draw_levels = lambda law, count, device: torch.full((count,), 0.5, device=device)
DiffusionCondTrainingWrapper.draw_timesteps = lambda self, clean, *_: clean.abs().mean((1, 2)) % 1
end = Checkpointing.on_train_batch_end

def on_train_batch_end(self, trainer, *arguments):
    end(self, trainer, *arguments)
    if trainer.global_step == 2 and "DIES" in os.environ:
        os.killpg(0, signal.SIGKILL)

Checkpointing.on_train_batch_end = on_train_batch_end
sys.exit((train.train_lora if "LORA" in os.environ else train.main)(sys.argv[1:]))
"""


def without_chance(kind: str) -> dict[str, Any]:
    """The config of a kind, whose losses are means over the items of a batch."""
    config = training_config(KINDS[kind])
    if kind == "arc":
        arc_section(config)
        config["training"]["arc"]["discriminator"]["contrastive"] = False  # compares with the neighbour in the batch
    section = config["training"]
    section.pop("demo", None)
    if kind == "gan":  # these two are ratios of sums over a batch
        section["loss_configs"]["spectral"]["weights"] = {"mrstft": 0.0}
        section["loss_configs"]["discriminator"]["weights"]["feature_matching"] = 0.0
    else:
        section["cfg_dropout_prob"] = 0.0
    for entry in section["optimizer_configs"].values():
        # Adam turns rounding of tiny gradients into whole steps; plain descent keeps differences in proportion.
        entry["optimizer"] = {"type": "SGD", "config": {"lr": 0.01}}
        entry.pop("scheduler", None)
    return config


class Launches:
    """Launches of one kind of training into folders beside each other, with the result of a single process."""

    def __init__(self, kind: str, dataset: Path, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self.script, self.config = folder / "train.py", folder / "model.json"
        self.script.write_text(SCRIPT)
        self.config.write_text(json.dumps(without_chance(kind)))
        self.variables = {"LORA": 1} if kind == "lora" else {}
        self.flags: tuple[Any, ...] = ()
        if kind == "lora":
            torch.manual_seed(0)
            weights = folder / "base.safetensors"
            save_weights(create_model_from_config(load(self.config)), weights)
            self.flags = ("--pretrained-ckpt-path", weights, "--rank", 2)
        self.run("one", LIGHTNING, 4)
        self.expected = self.end_of("one")

    def run(self, name: str, launcher: tuple[str, ...], batch: int, *flags: Any, status: int = 0, **more: Any) -> str:
        common = ("--max-steps", STEPS, "--checkpoint-every", 1, "--batch-size", batch, *self.flags, *flags)
        command = (launcher, *words(self.config, self.dataset, self.folder / name, *common))
        return run(command, self.script, status, **self.variables, **more)

    def end_of(self, name: str) -> dict[str, torch.Tensor]:
        (path,) = (self.folder / name).glob(f"run/*/checkpoints/*step={STEPS}.ckpt")
        checkpoint = read_sharded(path) if is_sharded(path) else torch.load(path, weights_only=True)
        state: dict[str, torch.Tensor] = checkpoint["state_dict"]
        return state


@pytest.fixture(scope="module")
def launches(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Launches] = {}

    def of(kind: str) -> Launches:
        if kind not in known:
            known[kind] = Launches(kind, dataset, tmp_path_factory.mktemp(kind))
        return known[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_killed_processes_end_as_one(kind: str, strategy: str, launcher: str, launches: Any) -> None:
    runs: Launches = launches(kind)
    name, flags = f"{launcher}_{strategy}", ("--strategy", strategy)
    start = (TORCHRUN, 2, *flags) if launcher == "torchrun" else (LIGHTNING, 2, *flags, "--devices", 2)
    if strategy == "fsdp" and kind in REFUSALS:
        assert REFUSALS[kind] in runs.run(name, *start, status=1 if launcher == "torchrun" else 2)
        return
    # The agent of torchrun reports that its processes were killed.
    runs.run(name, *start, status=1 if launcher == "torchrun" else -signal.SIGKILL, DIES=1)
    assert not list((runs.folder / name).glob(f"run/*/checkpoints/*step={STEPS}.ckpt"))
    resume = start if launcher == "torchrun" else (LIGHTNING, 4)
    assert "step=2.ckpt" in runs.run(name, *resume, "--recover")
    found = runs.end_of(name)
    assert found.keys() == runs.expected.keys()
    for key, value in runs.expected.items():
        # float32 sums in another order, over four steps
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
