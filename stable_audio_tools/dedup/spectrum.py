"""Frames of mel bands and pitch classes: what a recording sounds like every tenth of a second, whatever its level."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_RATE = 16_000
FRAMES_PER_SECOND = 10
MEL_BANDS = 32
PITCH_CLASSES = 12
_WINDOW = 4_096  # a quarter of a second: a copy shifted by half a hop still falls into much the same frames
_HOP = SAMPLE_RATE // FRAMES_PER_SECOND
_FLOOR = 1e-6  # of the loudest band's power, -60 dB
_LOUD = 1e-4  # of the loudest frame's power; frames below it say nothing


class Frames(NamedTuple):
    """A recording in bytes, small enough to keep for every file of a data set."""

    mel: NDArray[np.uint8]  # (32, t), 0 is -60 dB below the loudest band, 255 is the loudest
    chroma: NDArray[np.uint8]  # (12, t), 255 is the loudest pitch class of the frame
    loud: NDArray[np.bool_]  # (t,)


def analyse(audio: Tensor) -> Frames:
    """Mono audio (n,) at 16 kHz to frames."""
    padded = torch.nn.functional.pad(audio.float(), (0, max(0, _WINDOW - audio.shape[-1]) + _HOP))
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(padded, _WINDOW, _HOP, window=window, center=False, return_complex=True).abs()
    power, chroma = _mel_bank() @ spectrum.square(), _chroma_bank() @ spectrum
    level = power.sum(0)
    decibels = torch.log(power / power.max().clamp(min=1e-20) + _FLOOR) / math.log(_FLOOR)  # 0 loudest, 1 at the floor
    relative = chroma / chroma.amax(0, keepdim=True).clamp(min=1e-10)
    return Frames(_bytes(1 - decibels), _bytes(relative), (level > _LOUD * level.max()).numpy())


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return found


def _frequencies() -> NDArray[np.float64]:
    return np.arange(_WINDOW // 2 + 1) * SAMPLE_RATE / _WINDOW


@cache
def _mel_bank(lowest: float = 60.0, highest: float = 7_000.0) -> Tensor:
    """Triangles (32, bins), equally wide in mel = 2595 log10(1 + f / 700)."""
    first, last = (2595 * math.log10(1 + f / 700) for f in (lowest, highest))
    mels = np.linspace(first, last, MEL_BANDS + 2)
    edges, f = 700 * (10 ** (mels / 2595) - 1), _frequencies()
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (f - low) / (middle - low), (high - f) / (high - middle)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling))).float()


@cache
def _chroma_bank(lowest: float = 80.0, highest: float = 4_000.0, width: float = 0.6) -> Tensor:
    """Gaussians (12, bins) around each pitch class, `width` in semitones."""
    f = _frequencies()
    pitch = 12 * np.log2(np.maximum(f, 1) / 440) + 69
    distance = (pitch - np.arange(PITCH_CLASSES)[:, None] + 6) % 12 - 6
    inside = (f > lowest) & (f < highest)
    return torch.from_numpy(np.exp(-0.5 * (distance / width) ** 2) * inside).float()
