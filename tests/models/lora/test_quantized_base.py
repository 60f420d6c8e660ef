"""Adapters on a base in 8 and 4 bits, packed by bitsandbytes, whose kernels also run on a CPU."""

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.lora import BasePrecision, LoraAdapter, LoraConfig, attach_lora, merge_lora
from stable_audio_tools.models.lora.base import dense_weight, is_quantized

pytest.importorskip("bitsandbytes")

KINDS = ("lora", "dora-rows", "dora-cols", "bora", "lora-xs", "loha", "lokr")


def quantized(kind: str, precision: BasePrecision, **options: object) -> tuple[nn.Sequential, LoraAdapter, Tensor]:
    """A model of packed layers with an adapter, and an input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 32))
    x = torch.randn(16, 64)
    adapter = attach_lora(model, LoraConfig(adapter_type=kind, rank=4, base_precision=precision, **options), seed=1)
    return model.to("cpu"), adapter, x


def dense_output(model: nn.Sequential, x: Tensor) -> Tensor:
    """The output by the unpacked weights, W + sum of strength (W' - W)."""
    first, _, last = model
    hidden = nn.functional.silu(x @ first.adapted_weight().float().T + first.bias.float())
    out: Tensor = hidden @ last.adapted_weight().float().T + last.bias.float()
    return out


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_on_a_packed_base(kind: str, precision: BasePrecision) -> None:
    model, adapter, x = quantized(kind, precision)
    assert is_quantized(model[0]) and is_quantized(model[2])
    with torch.autocast("cpu", torch.bfloat16):
        model(x)  # int8 packs in its first pass
    packed = [dense_weight(layer).clone() for layer in (model[0], model[2])]
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02)
    target, losses = torch.randn(16, 32), []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        loss = (out.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.97 if kind == "lora-xs" else 0.8) * losses[0]  # a core of rank 4 holds 16 values
    assert all(torch.equal(dense_weight(layer), before) for layer, before in zip((model[0], model[2]), packed))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        live = model(x).float()
    expected = dense_output(model, x).detach()
    # bfloat16 has 8 bits, and int8 rounds the inputs to as many.
    assert (live - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_at_strength_zero_the_packed_base_answers(precision: BasePrecision) -> None:
    model, adapter, x = quantized("dora-rows", precision)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        start = model(x).float()
        for parameter in adapter.parameters():
            parameter.add_(0.1)
        changed = model(x).float()
        adapter.strength = 0.0
        base = model(x).float()
    assert (start - base).abs().max() < 0.05
    assert (changed - base).abs().max() > 0.1


def test_packed_weights_do_not_merge() -> None:
    model, _, _ = quantized("lora", "nf4")
    with pytest.raises(UserError, match=r"0: adapters do not merge into 8-bit or 4-bit weights"):
        merge_lora(model)
