"""Pictures of audio and of latents, drawn with Pillow alone."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchaudio.functional import melscale_fbanks

# Anchor colours of a dark-to-bright scale whose lightness rises evenly; values between them are interpolated.
_ANCHORS = np.array(
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ],
    dtype=np.float64,
)
_FLOOR_DB = -80.0


def spectrogram_image(audio: Tensor, sample_rate: int, height: int = 128, width: int = 512) -> Image.Image:
    """Mel spectrogram of `(c, n)` audio, channels averaged, low pitches at the bottom, 80 dB deep."""
    sound = torch.nan_to_num(audio.detach().float().cpu())
    mono = (sound if sound.ndim == 1 else sound.mean(0)) if sound.numel() else torch.zeros(1)
    size = 1024 if len(mono) >= 1024 else 256
    mono = torch.nn.functional.pad(mono, (0, max(0, size - len(mono))))
    power = torch.stft(mono, size, size // 4, window=torch.hann_window(size), return_complex=True).abs() ** 2
    mel = power.T @ _mel_filters(sample_rate, size, height)
    decibels = 10 * torch.log10(mel / mel.max().clamp_min(1e-10) + 10 ** (_FLOOR_DB / 10))
    return _coloured((decibels.T.flip(0).numpy() - _FLOOR_DB) / -_FLOOR_DB, width, height)


def latents_image(latents: Tensor, width: int = 512) -> Image.Image:
    """Latents `(d, t)`: one row per channel, time to the right, three standard deviations either way."""
    values = torch.nan_to_num(latents.detach().float().cpu())
    scaled = (values - values.mean()) / values.std().clamp_min(1e-6)
    return _coloured(((scaled.clamp(-3, 3) + 3) / 6).numpy(), width, max(64, 4 * values.shape[0]))


def bands_image(bands: Tensor, width: int, height: int) -> Image.Image:
    """Bands `(d, t)` of a spectrogram in [-1, 1], low pitches at the bottom; -1 is black."""
    values = torch.nan_to_num(bands.detach().float().cpu()).flip(0)
    return _coloured(((values + 1) / 2).numpy(), width, height)


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, size: int, bands: int) -> Tensor:
    bands = min(bands, size // 8)
    return melscale_fbanks(size // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate)


def _coloured(values: NDArray[np.float32], width: int, height: int) -> Image.Image:
    position = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    channels = [np.interp(position, np.arange(len(_ANCHORS)), _ANCHORS[:, channel]) for channel in range(3)]
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
