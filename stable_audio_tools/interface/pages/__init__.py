"""One page per kind of model: what it asks, and what that means to `AudioModel.generate`."""

from collections.abc import Callable

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.areas import mel_of
from stable_audio_tools.interface.pages import (
    adapters,
    autoencoder,
    inpainting,
    language_model,
    spectrogram,
    text_to_audio,
    unconditional,
)
from stable_audio_tools.interface.pages.page import Page
from stable_audio_tools.models.factory import ModelUse

__all__ = ["Page", "pages_of"]


_FIRST_PAGE: dict[ModelUse, Callable[[AudioModel], Page]] = {
    "conditional diffusion": text_to_audio.page,
    "unconditional diffusion": unconditional.page,
    "codec": autoencoder.page,
    "language model": language_model.page,
}


def pages_of(model: AudioModel) -> list[Page]:
    """The pages of a model, the usual one first; with a slider for each of its adapters."""
    plain = [_FIRST_PAGE[model.facts.use](model)]
    if model.facts.inpaints:
        plain.append(inpainting.page(model))
    if mel_of(model) is not None:
        plain.append(spectrogram.page(model, plain[0]))
    return [adapters.with_adapters(page, model) for page in plain]
