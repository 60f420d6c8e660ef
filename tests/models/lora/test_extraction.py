"""Adapters out of the difference of two models."""

import pytest
import torch
from support.layered import Layered, factors_of, layered, trained
from torch import nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.lora import extract_lora, load_lora, merge_lora


def tuned_from(model: Layered) -> Layered:
    made = Layered()
    made.load_state_dict(model.state_dict())
    return made


def test_a_merged_adapter_comes_out_again() -> None:
    model, x = layered(torch.float32)
    adapter = trained(model, "lora")
    live = model(x)
    changes = {path: 2 * held["lora_B"] @ held["lora_A"] for path, held in factors_of(adapter).items()}
    merge_lora(model)
    tuned = tuned_from(model)
    base, _ = layered(torch.float32)
    found = extract_lora(base, tuned, rank=3)
    assert (found.unchanged, found.beyond) == (0, [])
    assert found.kept == pytest.approx(1.0, abs=1e-5)
    for path, held in found.lora.layers.items():
        torch.testing.assert_close(held["lora_B"] @ held["lora_A"], changes[path], rtol=1e-4, atol=1e-5)
    load_lora(base, found.lora)
    assert (base(x) - live).abs().max() < 1e-5


def test_a_smaller_rank_keeps_the_largest_share() -> None:
    base, _ = layered(torch.float32)
    tuned = tuned_from(base)
    change = torch.randn(12, 8)
    tuned.widen.weight.data += change
    tuned.smooth.bias.data += 1
    values = torch.linalg.svdvals(change).square()
    found = extract_lora(base, tuned, rank=2)
    assert found.kept == pytest.approx(float(values[:2].sum() / values.sum()), abs=1e-4)
    assert (found.unchanged, found.beyond, list(found.lora.layers)) == (4, ["smooth.bias"], ["widen"])


def test_models_that_cannot_be_compared() -> None:
    base, _ = layered(torch.float32)
    with pytest.raises(CheckpointError, match="none of the 5 layers differs between the two models"):
        extract_lora(base, tuned_from(base), rank=2)
    other = tuned_from(base)
    other.widen = nn.Linear(8, 13)
    with pytest.raises(CheckpointError, match=r"differ in 2 of 8 tensors by name or shape, the first 'widen\.weight'"):
        extract_lora(base, other, rank=2)
