"""One page per kind of model: what it asks, and what that means to `AudioModel.generate`."""

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

__all__ = ["Page", "pages_of"]


def pages_of(model: AudioModel) -> list[Page]:
    """The pages of a model, the usual one first; with a slider for each of its adapters."""
    plain = _plain_pages(model)
    if mel_of(model) is not None:
        plain.append(spectrogram.page(model, plain[0]))
    return [adapters.with_adapters(page, model) for page in plain]


def _plain_pages(model: AudioModel) -> list[Page]:
    if model.facts.model_type in ("autoencoder", "diffusion_autoencoder"):
        return [autoencoder.page(model)]
    if model.facts.model_type == "diffusion_uncond":
        return [unconditional.page(model)]
    if model.facts.model_type == "lm":
        return [language_model.page(model)]
    made = [text_to_audio.page(model)]
    return [*made, inpainting.page(model)] if model.facts.inpaints else made
