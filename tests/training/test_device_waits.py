"""A training step on a GPU never waits for it, except where its values are logged."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from support.fake_cuda import FakeCuda
from support.small_training import arc_section, training_config
from torch.utils.data import DataLoader

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.inpainting import random_inpaint_mask
from stable_audio_tools.models.lora import LoraConfig, attach_lora
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.callbacks.guards import NonFiniteGuard
from stable_audio_tools.training.callbacks.progress import ProgressBar
from stable_audio_tools.training.callbacks.telemetry import Telemetry
from stable_audio_tools.training.module import TrainingModule

STEPS, LOGGED_EVERY = 8, 100


class FakeAccelerator(CPUAccelerator):
    """Lightning's checks of a device, without one."""

    def setup_device(self, device: torch.device) -> None:
        pass


class FakeEvent:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def gradients_appear(module: TrainingModule, loss: torch.Tensor) -> None:
    """In place of the backward pass, whose engine needs a driver: kernels alone, chosen by the forward pass."""
    assert loss.requires_grad
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


class Steps(pl.Callback):
    """Waits of each step, with the places that caused them."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu
        self.waits: list[dict[str, int]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if self.waits or self.gpu.calls:
            self.waits.append(dict(self.gpu.waits))
        self.gpu.restart()


def batches(config: dict[str, Any]) -> list[Any]:
    audio = torch.zeros(2, config.get("audio_channels", 2), config["sample_size"])
    mask = torch.ones(config["sample_size"])
    about = {"sound": "drums", "prompt": "drums", "seconds_start": 0, "seconds_total": 3, "padding_mask": mask}
    return [(audio, (dict(about), dict(about))) for _ in range(STEPS)]


def waits_of(
    config: dict[str, Any], tmp_path: Any, monkeypatch: Any, change: Callable[[Any], Any] | None = None
) -> Any:
    monkeypatch.setattr("torch.cuda.Event", FakeEvent)
    monkeypatch.setattr(TrainingModule, "backward", gradients_appear)
    config["training"].pop("demo", None)
    with FakeCuda() as gpu:
        model = create_model_from_config(config)
        if change is not None:
            change(model)
        wrapper = create_training_wrapper_from_config(config, model)
        watching = Steps(gpu)
        trainer = pl.Trainer(
            strategy=SingleDeviceStrategy(torch.device("cuda", 0), accelerator=FakeAccelerator()),
            max_steps=STEPS,
            callbacks=[
                watching,
                NonFiniteGuard("skip", tmp_path),
                Telemetry(config["sample_rate"], counts_operations=False),
                ProgressBar(),
            ],
            gradient_clip_val=1.0 if wrapper.automatic_optimization else None,
            log_every_n_steps=LOGGED_EVERY,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(wrapper, DataLoader(batches(config), batch_size=None))  # type: ignore[arg-type]
    return watching.waits


def adapted(model: Any) -> None:
    model.requires_grad_(False)
    attach_lora(model, LoraConfig(rank=2))


CASES: dict[str, tuple[str, Any, Any]] = {
    "diffusion": ("tiny_diffusion_cond", None, None),
    "padding": ("tiny_diffusion_cond", lambda c: c["training"].update(mask_padding=True), None),
    "inpainting": ("tiny_diffusion_cond_inpaint", None, None),
    "unconditional": ("tiny_diffusion_uncond", None, None),
    "decoder": ("tiny_diffusion_autoencoder", None, None),
    "autoencoder": ("tiny_autoencoder", None, None),
    "language model": ("tiny_lm", None, None),
    "lora": ("tiny_diffusion_cond", None, adapted),
    "arc": ("tiny_diffusion_cond", arc_section, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(case: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, adapt = CASES[case]
    config = training_config(name)
    if change is not None:
        change(config)
    waits = waits_of(config, tmp_path, monkeypatch, adapt)
    assert len(waits) >= STEPS - 2
    assert waits[2:] == [{}] * len(waits[2:])


@pytest.mark.parametrize(("samples", "frames"), [(8192, 64), (1000, 7), (50, 50), (2097152, 1024), (10, 30)])
def test_masks_are_what_nearest_neighbours_make_of_them(samples: int, frames: int) -> None:
    masks = [torch.arange(samples) < end for end in (0, 1, samples // 3, samples - 1, samples)]
    found = padding_masks([{"padding_mask": [mask]} for mask in masks], frames, torch.device("cpu"))
    expected = torch.nn.functional.interpolate(torch.stack(masks)[:, None].float(), size=frames, mode="nearest")[:, 0]
    assert torch.equal(found, expected.bool())
    assert padding_masks([{}], frames, torch.device("cpu")) is None


def test_masks_of_gaps_are_made_on_the_host() -> None:
    with FakeCuda() as gpu:
        latents = torch.zeros(3, 4, 20, device="cuda")
        kept, mask = random_inpaint_mask(latents, padding_masks=torch.ones(3, 20, dtype=torch.bool))
        assert mask.device.type == kept.device.type == "cuda" and not gpu.waits
