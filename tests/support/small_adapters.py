"""Adapter files of the tiny models, with factors that do something."""

from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.models.lora import attach_lora, lora_config_from, save_lora
from stable_audio_tools.models.pretrained import load_model


def small_adapter(config: Path, weights: Path, path: Path, seed: int = 0, **section: Any) -> Path:
    """`small_adapter(model.config, model.weights, folder / "a.safetensors")`: rank 2, factors drawn from the seed."""
    model = load_model(config, weights)
    adapter = attach_lora(model, lora_config_from({"rank": 2, **section}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, factors in adapter.layers():
            factors.lora_B.copy_(torch.randn(factors.lora_B.shape, generator=generator) * 0.3)
    return save_lora(adapter, path, model=model)
