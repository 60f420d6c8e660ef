"""Weights of stable-audio-3, by its names; what does not fit is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.core.config import load
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.checkpoints import load_into, open_weights
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.stable_audio_3.factory import (
    create_autoencoder_from_config,
    create_diffusion_cond_from_config,
)

_NESTED = "pretransform.model."


def load_diffusion_cond(
    model_config: Mapping[str, Any], ckpt_path: str | Path, device: str = "cuda", model_half: bool = False
) -> ConditionedDiffusionModelWrapper:
    """Build a diffusion model and load its weights; frozen and in eval mode."""
    model = create_diffusion_cond_from_config(model_config)
    load_into(model, ckpt_path)
    model.to(pick_device(device)).eval().requires_grad_(False)
    return model.half() if model_half else model


def load_autoencoder(config_path: str | Path, ckpt_path: str | Path, device: str = "cpu") -> AudioAutoencoder:
    """Build the autoencoder of a config and load it from its own file or from the file of a whole model."""
    config = load(config_path)
    autoencoder = create_autoencoder_from_config(config["model"], config["sample_rate"])
    tensors: Mapping[str, torch.Tensor] = open_weights(ckpt_path).tensors
    nested = {name.removeprefix(_NESTED): value for name, value in tensors.items() if name.startswith(_NESTED)}
    load_into(autoencoder, nested or tensors)
    return autoencoder.to(pick_device(device))
