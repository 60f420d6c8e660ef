"""Published import path of pictures of audio and latents."""

import numpy as np
from einops import rearrange
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from stable_audio_tools.data.pictures import (
    embeddings_table,
    latents_image,
    pca_point_cloud,
    point_cloud,
    proj_pca,
    project_down,
    spectrogram_image,
)

__all__ = [
    "audio_spectrogram_image",
    "embeddings_table",
    "mel_spectrogram",
    "pca_point_cloud",
    "point_cloud",
    "power_to_db",
    "proj_pca",
    "project_down",
    "spectrogram_image",
    "tokens_spectrogram_image",
]


def audio_spectrogram_image(waveform: Tensor, power: float = 2.0, sample_rate: int = 48000, **_: object) -> Image.Image:
    """Draw the mel spectrogram of `(c, n)` audio, floating-point or 16-bit; other options have no effect."""
    scale = 1.0 if waveform.is_floating_point() else 1 / 32768
    return spectrogram_image(waveform.float() * scale, sample_rate)


def tokens_spectrogram_image(tokens: Tensor, **_: object) -> Image.Image:
    """Draw latents `(b, d, t)` one after another; other options have no effect."""
    return latents_image(rearrange(tokens, "b d t -> d (b t)"))


def mel_spectrogram(
    waveform: Tensor,
    power: float = 2.0,
    sample_rate: int = 48000,
    db: bool = False,
    n_fft: int = 1024,
    n_mels: int = 128,
    **_: object,
) -> Tensor:
    """Return the mel spectrogram `(..., n_mels, frames)` of `(..., n)` audio, in decibels if `db`."""
    mel = MelSpectrogram(
        sample_rate, n_fft, hop_length=n_fft // 2, power=power, norm="slaney", n_mels=n_mels, mel_scale="htk"
    )(waveform.float())
    spectrum: Tensor = AmplitudeToDB()(mel) if db else mel
    return spectrum


def power_to_db(spec: ArrayLike, *, amin: float = 1e-10) -> NDArray[np.floating]:
    """Return powers in decibels, limited to 80 dB below the strongest."""
    levels = 10.0 * np.log10(np.maximum(amin, np.asarray(spec)))
    floored: NDArray[np.floating] = np.maximum(levels, levels.max() - 80)
    return floored
