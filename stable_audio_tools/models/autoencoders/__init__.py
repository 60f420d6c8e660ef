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
    from stable_audio_tools.models.autoencoders.oobleck import (
        DecoderBlock,
        EncoderBlock,
        OobleckDecoder,
        OobleckEncoder,
    )
    from stable_audio_tools.models.autoencoders.preprocessing import (
        fold_channels_into_batch,
        unfold_channels_from_batch,
    )
    from stable_audio_tools.models.autoencoders.same import SAMEDecoder, SAMEEncoder, TransformerResamplingBlock
    from stable_audio_tools.models.autoencoders.taae import TAAEBlock, TAAEDecoder, TAAEEncoder
    from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, WNConvTranspose1d
    from stable_audio_tools.models.factory import create_bottleneck_from_config, create_pretransform_from_config

_HOMES = {
    "AudioAutoencoder": "autoencoder",
    "DACDecoderWrapper": "dac",
    "DACEncoderWrapper": "dac",
    "DecoderBlock": "oobleck",
    "DiffusionAutoencoder": "diffusion",
    "EncoderBlock": "oobleck",
    "OobleckDecoder": "oobleck",
    "OobleckEncoder": "oobleck",
    "SAMEDecoder": "same",
    "SAMEEncoder": "same",
    "TAAEBlock": "taae",
    "TAAEDecoder": "taae",
    "TAAEEncoder": "taae",
    "TransformerResamplingBlock": "same",
    "WNConv1d": "weight_norm",
    "WNConvTranspose1d": "weight_norm",
    "create_autoencoder_from_config": "factory",
    "create_decoder_from_config": "factory",
    "create_diffAE_from_config": "diffusion",
    "create_encoder_from_config": "factory",
    "fold_channels_into_batch": "preprocessing",
    "unfold_channels_from_batch": "preprocessing",
}

__all__ = [
    "AudioAutoencoder",
    "DACDecoderWrapper",
    "DACEncoderWrapper",
    "DecoderBlock",
    "DiffusionAutoencoder",
    "EncoderBlock",
    "OobleckDecoder",
    "OobleckEncoder",
    "SAMEDecoder",
    "SAMEEncoder",
    "TAAEBlock",
    "TAAEDecoder",
    "TAAEEncoder",
    "TransformerResamplingBlock",
    "WNConv1d",
    "WNConvTranspose1d",
    "create_autoencoder_from_config",
    "create_bottleneck_from_config",
    "create_decoder_from_config",
    "create_diffAE_from_config",
    "create_encoder_from_config",
    "create_pretransform_from_config",
    "fold_channels_into_batch",
    "unfold_channels_from_batch",
]


def __getattr__(name: str) -> Any:
    if name in ("create_bottleneck_from_config", "create_pretransform_from_config"):
        return getattr(import_module("stable_audio_tools.models.factory"), name)
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
