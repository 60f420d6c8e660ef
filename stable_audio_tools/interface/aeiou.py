"""Published import path of pictures of audio and latents."""

from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from stable_audio_tools.data.latent_views import (
    embeddings_table,
    pca_point_cloud,
    point_cloud,
    proj_pca,
    project_down,
)
from stable_audio_tools.data.pictures import latents_image, spectrogram_image

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


def audio_spectrogram_image(waveform: Tensor, power: float = 2.0, sample_rate: int = 48000, **_: Any) -> Image.Image:
    """Mel spectrogram of `(c, n)` audio, floating-point or 16-bit; `power` and options of plot libraries
    have no effect.
    """
    scale = 1.0 if waveform.is_floating_point() else 1 / 32768
    return spectrogram_image(waveform.float() * scale, sample_rate)


def tokens_spectrogram_image(tokens: Tensor, **_: Any) -> Image.Image:
    """Latents `(b, d, t)` one after the other; options of plot libraries have no effect."""
    return latents_image(rearrange(tokens, "b d t -> d (b t)"))


def mel_spectrogram(
    waveform: Tensor,
    power: float = 2.0,
    sample_rate: int = 48000,
    db: bool = False,
    n_fft: int = 1024,
    n_mels: int = 128,
    **_: Any,
) -> Tensor:
    """Mel spectrogram of `(..., n)` audio, `(..., n_mels, frames)`, with `db` in decibels."""
    mel = MelSpectrogram(
        sample_rate, n_fft, hop_length=n_fft // 2, power=power, norm="slaney", n_mels=n_mels, mel_scale="htk"
    )(waveform.float())
    spectrum: Tensor = AmplitudeToDB()(mel) if db else mel
    return spectrum


def power_to_db(spec: Any, *, amin: float = 1e-10) -> NDArray[np.floating]:
    """Powers in decibels, of which the weakest count as 80 below the strongest."""
    levels = 10.0 * np.log10(np.maximum(amin, np.asarray(spec)))
    floored: NDArray[np.floating] = np.maximum(levels, levels.max() - 80)
    return floored
