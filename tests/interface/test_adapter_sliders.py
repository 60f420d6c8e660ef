"""A page has a slider for every adapter, and what it says acts in that run alone."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.inference.audio_model import load
from stable_audio_tools.interface.pages import pages_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_adapters import small_adapter


@pytest.mark.parametrize("name", ["tiny_diffusion_cond_inpaint", "tiny_autoencoder"])
def test_sliders_set_strengths(small_files: Any, name: str, tmp_path: Path) -> None:
    base = small_files(name)
    paths = [
        small_adapter(*base, tmp_path / file, seed) for seed, file in enumerate(("a-b.safetensors", "a b.safetensors"))
    ]
    model = load(*base, "cpu", lora={paths[0]: 0.5, paths[1]: 3})
    for page in pages_of(model):
        controls = {control.name: control for control in page.controls}
        first, second = controls["lora_a_b"], controls["lora_a_b_2"]
        assert (first.label, first.default, first.minimum, first.maximum) == ("a-b", 0.5, -1, 2)
        assert (second.label, second.default, second.maximum) == ("a b", 3, 3)
    page = pages_of(model)[0]
    values = {control.name: control.default for control in page.controls} | {"steps": 1}
    if "init_audio" in values:
        values["init_audio"] = (model.sample_rate, torch.rand(2, 4096) - 0.5)

    def heard(one: float, two: float) -> torch.Tensor:
        return model.generate(**page.request(values | {"seed": 1, "lora_a_b": one, "lora_a_b_2": two})).audio

    if "steps" not in controls:
        values.pop("steps")
    plain = heard(0, 0)
    assert torch.equal(plain, heard(0, 0)) and not torch.equal(plain, heard(1, 0))
    assert not torch.equal(heard(1, 0), heard(1, 1))
    assert [adapter.strength for adapter in model.adapters.values()] == [0.5, 3]
    assert [told["strength"] for told in model.told_adapters({"a b": 0.1})] == [0.5, 0.1]
