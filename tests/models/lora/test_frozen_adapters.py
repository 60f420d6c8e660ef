"""What adapters compute once while nothing trains, and where merging keeps the base."""

import pytest
import torch
from support.fake_cuda import FakeCuda
from support.layered import TYPES, layered, trained
from torch import nn

from stable_audio_tools.models.lora import LoraConfig, attach_lora, merge_lora, unmerge_lora
from stable_audio_tools.models.lora import factors as factors_module


@pytest.mark.parametrize("kind", [kind for kind in TYPES if "dora" in kind or "bora" in kind])
def test_gains_are_computed_once_until_something_changes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = layered()
    adapter = trained(model, kind)
    computed = []
    gains = factors_module.gains
    monkeypatch.setattr(factors_module, "gains", lambda *args: computed.append(1) or gains(*args))
    with torch.no_grad():
        first = model(x)
        once = len(computed)
        assert once and torch.equal(model(x), first) and len(computed) == once
        adapter.strength = 0.5
        model(x)
        assert len(computed) == once, "gains do not depend on the strength"
        for _, held in adapter.layers():
            next(held.parameters()).mul_(1.5)
        assert not torch.allclose(model(x), first) and len(computed) == 2 * once
        for layer in model.modules():
            if hasattr(layer, "base_weight"):
                layer.weight.mul_(1.1)
        model(x)
        assert len(computed) > 2 * once
    before = len(computed)
    model(x).sum().backward()
    model(x)
    assert len(computed) >= before + 2 * once, "gradients pass through gains that are computed in their pass"


def test_factors_are_converted_once_on_a_gpu() -> None:
    with FakeCuda() as gpu, torch.no_grad():
        layer = nn.Sequential(nn.Linear(64, 64, device="cuda", dtype=torch.float16))
        attach_lora(layer, LoraConfig(rank=4, include=["0"]))
        x = torch.ones(2, 64, device="cuda", dtype=torch.float16)
        layer(x)
        gpu.restart()
        for _ in range(3):
            layer(x)
    assert not gpu.converted_bytes and not gpu.waits


def test_merging_holds_no_second_copy_on_the_device() -> None:
    with FakeCuda() as gpu:
        model = nn.Sequential(
            nn.Linear(512, 512, bias=False, device="cuda"), nn.Linear(512, 512, bias=False, device="cuda")
        )
        attach_lora(model, LoraConfig(rank=2, include=["0", "1"]))
        before = gpu.held_bytes
        merge_lora(model)
        assert gpu.held_bytes == before
        unmerge_lora(model)
        assert gpu.held_bytes == before
