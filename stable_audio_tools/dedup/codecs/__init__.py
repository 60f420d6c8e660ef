"""Codecs of deduplication by name. Each codec is a class in this folder and a function that builds it."""

from collections.abc import Callable
from pathlib import Path

from stable_audio_tools.core.config import load
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.dedup.codecs.base import Codec, Sound
from stable_audio_tools.dedup.codecs.spectral import SpectralCodec
from stable_audio_tools.dedup.settings import CodecSettings

__all__ = ["CODECS", "Codec", "CodecSettings", "Sound", "SpectralCodec", "create_codec"]


def create_codec(settings: CodecSettings) -> Codec:
    """Build the codec that the settings name."""
    return CODECS[settings.codec](settings)


def _spectral(settings: CodecSettings) -> Codec:
    return SpectralCodec()


def _dac(settings: CodecSettings) -> Codec:
    from stable_audio_tools.dedup.codecs.neural import DACCodec

    if settings.model_path and not Path(settings.model_path).is_file():
        raise ConfigError(f"--model-path {settings.model_path}: no such file")
    return DACCodec(settings.model_type, settings.model_path, pick_device(settings.device))


def _autoencoder(settings: CodecSettings) -> Codec:
    from stable_audio_tools.dedup.codecs.neural import AutoencoderCodec
    from stable_audio_tools.models.pretrained import get_pretrained_model, load_model

    if settings.pretrained_name:
        model, config = get_pretrained_model(settings.pretrained_name)
    else:
        assert settings.model_config is not None and settings.ckpt_path is not None
        config = load(settings.model_config)
        model = load_model(config, settings.ckpt_path, ema=None)
    return AutoencoderCodec(model, int(config["sample_rate"]), pick_device(settings.device))


CODECS: dict[str, Callable[[CodecSettings], Codec]] = {
    "dac": _dac,
    "autoencoder": _autoencoder,
    "spectral": _spectral,
}
