"""Models from configs, by the names of stable-audio-3."""

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.core.generations import generation
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.factory import create_autoencoder_from_config as build_autoencoder
from stable_audio_tools.models.diffusion.conditioned import (
    ConditionedDiffusionModelWrapper,
)
from stable_audio_tools.models.diffusion.conditioned import (
    create_diffusion_cond_from_config as build_diffusion,
)

__all__ = ["create_autoencoder_from_config", "create_diffusion_cond_from_config"]


def create_diffusion_cond_from_config(config: Mapping[str, Any]) -> ConditionedDiffusionModelWrapper:
    """Build the diffusion model of a whole config; its sampling follows stable-audio-3."""
    with generation("stable-audio-3"):
        model = build_diffusion(config)
    model.sampling_version = "stable-audio-3"
    return model


def create_autoencoder_from_config(config: Mapping[str, Any], sample_rate: int) -> AudioAutoencoder:
    """Build the autoencoder of a `model` section: its own, or the pretransform of a diffusion model."""
    section = config if "encoder" in config else config["pretransform"]["config"]
    return build_autoencoder({"sample_rate": sample_rate, "model": section})
