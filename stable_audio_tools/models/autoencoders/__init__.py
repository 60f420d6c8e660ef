"""Autoencoders: audio to latents and back. Names load when first used: other packages build on modules below."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
    from stable_audio_tools.models.autoencoders.dac import DACDecoderWrapper, DACEncoderWrapper
    from stable_audio_tools.models.autoencoders.diffusion import DiffusionAutoencoder, create_diffAE_from_config
    from stable_audio_tools.models.autoencoders.factory import (
        create_autoencoder_from_config,
        create_decoder_from_config,
        create_encoder_from_config,
    )
    from stable_audio_tools.models.autoencoders.oobleck import OobleckDecoder, OobleckEncoder
    from stable_audio_tools.models.autoencoders.same import SAMEDecoder, SAMEEncoder, TransformerResamplingBlock
    from stable_audio_tools.models.autoencoders.taae import TAAEDecoder, TAAEEncoder

_HOMES = {
    "AudioAutoencoder": "autoencoder",
    "DACDecoderWrapper": "dac",
    "DACEncoderWrapper": "dac",
    "DiffusionAutoencoder": "diffusion",
    "OobleckDecoder": "oobleck",
    "OobleckEncoder": "oobleck",
    "SAMEDecoder": "same",
    "SAMEEncoder": "same",
    "TAAEDecoder": "taae",
    "TAAEEncoder": "taae",
    "TransformerResamplingBlock": "same",
    "create_autoencoder_from_config": "factory",
    "create_decoder_from_config": "factory",
    "create_diffAE_from_config": "diffusion",
    "create_encoder_from_config": "factory",
}

__all__ = [
    "AudioAutoencoder",
    "DACDecoderWrapper",
    "DACEncoderWrapper",
    "DiffusionAutoencoder",
    "OobleckDecoder",
    "OobleckEncoder",
    "SAMEDecoder",
    "SAMEEncoder",
    "TAAEDecoder",
    "TAAEEncoder",
    "TransformerResamplingBlock",
    "create_autoencoder_from_config",
    "create_decoder_from_config",
    "create_diffAE_from_config",
    "create_encoder_from_config",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
