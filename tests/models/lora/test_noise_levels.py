"""Adapters that act at some noise levels alone."""

from typing import Any

import pytest
import torch
from support.layered import trained
from torch import Tensor

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.diffusion.denoising import PlainDenoiser
from stable_audio_tools.models.diffusion.guidance import Guidance
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW
from stable_audio_tools.models.lora import LoraAdapter

CONFIG: dict[str, Any] = {
    "model_type": "diffusion_cond",
    "sample_size": 64,
    "sample_rate": 16000,
    "model": {
        "io_channels": 4,
        "conditioning": {
            "cond_dim": 8,
            "configs": [{"id": "bars", "type": "int", "config": {"max_val": 16}}],
        },
        "diffusion": {
            "type": "dit",
            "diffusion_objective": "rectified_flow",
            "cross_attention_cond_ids": ["bars"],
            "config": {"io_channels": 4, "embed_dim": 32, "depth": 1, "num_heads": 1, "cond_token_dim": 8},
        },
    },
}


@pytest.fixture(params=["transformer", "plain"])
def sampled(request: pytest.FixtureRequest) -> tuple[Any, LoraAdapter, Any]:
    """A model, its adapter and what makes a denoiser of it."""
    torch.manual_seed(0)
    model = create_model_from_config(CONFIG).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.1)
    adapter = trained(model, "lora", include=["to_kv", "to_cond_embed", "ff"])
    inputs = {"cross_attn_cond": torch.randn(2, 1, 8)}
    if request.param == "transformer":
        return model, adapter, lambda: model.denoiser(inputs, cfg_scale=3.0)
    return model, adapter, lambda: PlainDenoiser(model.model, inputs, Guidance(), RECTIFIED_FLOW)


@torch.no_grad()
def test_an_adapter_acts_inside_its_interval_alone(sampled: tuple[Any, LoraAdapter, Any]) -> None:
    _, adapter, make = sampled
    x = torch.randn(2, 4, 16)

    def outputs() -> list[Tensor]:
        denoise = make()
        return [denoise(x, torch.full((2,), level)) for level in (0.9, 0.5, 0.1)]

    acting = outputs()
    adapter.strength = 0.0
    base = outputs()
    adapter.strength = 1.0
    adapter.interval = (0.3, 0.5)
    found = outputs()
    assert torch.equal(found[0], base[0])
    assert torch.equal(found[1], acting[1])
    assert torch.equal(found[2], base[2])
    assert not torch.equal(acting[0], base[0])
    adapter.interval = None
    assert all(torch.equal(a, b) for a, b in zip(outputs(), acting))


def test_outside_of_sampling_the_interval_is_not_asked(sampled: tuple[Any, LoraAdapter, Any]) -> None:
    model, adapter, make = sampled
    x, t = torch.randn(2, 4, 16), torch.full((2,), 0.9)
    inputs = {"cross_attn_cond": torch.randn(2, 1, 8)}
    with torch.no_grad():
        before = model.model(x, t, **inputs)
        adapter.interval = (0.0, 0.5)
        make()(x, t)
        assert torch.equal(model.model(x, t, **inputs), before)


def test_an_interval_goes_from_low_to_high(sampled: tuple[Any, LoraAdapter, Any]) -> None:
    with pytest.raises(UserError, match=r"interval of adapter 'lora': expected \[lowest, highest\] noise level"):
        sampled[1].interval = (0.8, 0.2)
