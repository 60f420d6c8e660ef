"""Shipped models at full size on a GPU that is not there, and an encoder of text that has only a size."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import load
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.conditioners.text import T5Conditioner
from support.fake_cuda import FakeCuda
from support.small_models import CONFIGS

GIB = 2**30
T5_BASE, T5_XXL = 109_628_544, 4_762_310_656  # values of the encoders


class HollowEncoder(nn.Module):
    """As large as an encoder of the T5 family, with its inputs and outputs."""

    def __init__(self, values: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = nn.Embedding(values // width, width, dtype=dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.table(input_ids)}


class Words:
    """A tokenizer of words."""

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> dict[str, Tensor]:
        longest = min(max_length, max(len(text.split()) for text in texts))
        lengths = torch.tensor([len(text.split()) for text in texts])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"input_ids": mask, "attention_mask": mask}


def hollow_model(
    name: str, gpu: FakeCuda, precision: str = "float32", offload: bool = False, t5: int = T5_BASE
) -> AudioModel:
    """A shipped config as `AudioModel` on the device, its text encoders replaced by hollow ones of `t5` values."""
    config = load(next(CONFIGS.rglob(f"{name}.json")))
    with gpu.hollow():
        module = create_model_from_config(config)
    for conditioner in module.modules():
        if isinstance(conditioner, T5Conditioner):
            _hollow(conditioner, gpu, t5)
    return AudioModel(module, config, "cuda", precision, offload=offload)


def _hollow(conditioner: T5Conditioner, gpu: FakeCuda, values: int) -> None:
    def load_encoder(dtype: torch.dtype) -> nn.Module:
        with gpu.hollow():
            return HollowEncoder(values, conditioner.dim, dtype)

    conditioner.t5_model_name = f"hollow encoder {id(gpu)} of {values}"
    conditioner._load = load_encoder  # type: ignore[method-assign]
    conditioner.__dict__["tokenizer"] = Words()


def watch_steps(gpu: FakeCuda) -> SimpleNamespace:
    """A callback of sampling whose `steps` are what the device did in each step after the first."""
    seen: list[tuple[int, int, int]] = []
    watched = SimpleNamespace(steps=[])

    def callback(_: dict[str, Any]) -> None:
        seen.append((sum(gpu.waits.values()), sum(gpu.host_copies.values()), gpu.converted_bytes))
        if len(seen) > 1:
            watched.steps.append(tuple(now - before for now, before in zip(seen[-1], seen[-2])))

    watched.callback = callback
    return watched
