"""Mel bands and pitch classes of a recording, ten frames per second, and the alignment of two recordings.

Tracks of one style use the same sounds equally often, but at different times. A copy that was shifted, cut or encoded
again agrees with its original at one offset.
"""

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
_WINDOW = 4_096  # a quarter of a second, so that a copy shifted by half a hop has similar frames
_HOP = SAMPLE_RATE // FRAMES_PER_SECOND
_SHORTEST_OVERLAP = 0.5  # of the shorter recording
_QUIET = 1e-6  # of the largest energy; an overlap with less is not compared
_FLOOR = 1e-6  # of the loudest band's power, -60 dB
_LOUD = 1e-4  # of the loudest frame's power; quieter frames are ignored


class Frames(NamedTuple):
    """Frames of a recording as bytes, small enough to keep for every file of a dataset."""

    mel: NDArray[np.uint8]  # (32, t), 0 is -60 dB below the loudest band, 255 is the loudest
    chroma: NDArray[np.uint8]  # (12, t), 255 is the loudest pitch class of the frame
    loud: NDArray[np.bool_]  # (t,)


def analyse(audio: Tensor) -> Frames:
    """Convert mono audio (n,) at 16 kHz to frames."""
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
    """Return triangular filters (32, bins), equally wide in mel = 2595 log10(1 + f / 700)."""
    first, last = (2595 * math.log10(1 + f / 700) for f in (lowest, highest))
    mels = np.linspace(first, last, MEL_BANDS + 2)
    edges, f = 700 * (10 ** (mels / 2595) - 1), _frequencies()
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (f - low) / (middle - low), (high - f) / (high - middle)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling))).float()


@cache
def _chroma_bank(lowest: float = 80.0, highest: float = 4_000.0, width: float = 0.6) -> Tensor:
    """Return Gaussian filters (12, bins) around each pitch class, `width` in semitones."""
    f = _frequencies()
    pitch = 12 * np.log2(np.maximum(f, 1) / 440) + 69
    distance = (pitch - np.arange(PITCH_CLASSES)[:, None] + 6) % 12 - 6
    inside = (f > lowest) & (f < highest)
    return torch.from_numpy(np.exp(-0.5 * (distance / width) ** 2) * inside).float()


# ------------------------------------------------------------------ alignment


class Aligned(NamedTuple):
    """Agreement of two recordings at their best offset."""

    score: float  # correlation of mel bands or of pitch classes, whichever is lower
    offset_seconds: float  # delay of the first recording relative to the second


def align(one: Frames, other: Frames) -> Aligned:
    """Compare two recordings at every offset that overlaps half of the shorter one."""
    timbre = _correlate(_centred(one.mel), _centred(other.mel))
    pitch = _correlate(_centred(one.chroma), _centred(other.chroma))
    best = int((timbre + pitch).argmax())
    score = torch.minimum(timbre[best], pitch[best])
    later = best if best < one.mel.shape[1] else best - len(timbre)
    return Aligned(round(float(score), 6), later / FRAMES_PER_SECOND)


def _centred(bands: NDArray[np.uint8]) -> Tensor:
    """Subtract the mean of each band: (bands, t) in float64."""
    values = torch.from_numpy(bands).double()
    return values - values.mean(1, keepdim=True)


def _correlate(one: Tensor, other: Tensor) -> Tensor:
    """Return the correlation of the overlapping frames at every offset; -1 if too few overlap."""
    length = one.shape[1] + other.shape[1]
    product = _cross(one, other, length)
    ones, others = torch.ones_like(one[:1]), torch.ones_like(other[:1])
    overlap = _cross(ones, others, length)
    energies = [
        _cross(one.square().sum(0, keepdim=True), others, length),
        _cross(ones, other.square().sum(0, keepdim=True), length),
    ]
    least = _QUIET * max(float(energy.max()) for energy in energies) + 1e-9
    correlation = product / (energies[0].clamp(min=least) * energies[1].clamp(min=least)).sqrt()
    enough = overlap.round() >= _SHORTEST_OVERLAP * min(one.shape[1], other.shape[1])
    return torch.where(enough, correlation, -1.0)


def _cross(one: Tensor, other: Tensor, length: int) -> Tensor:
    """Return the sum over bands and t of one[t + k] other[t]; offsets k are 0, 1, ..., then ..., -2, -1."""
    spectrum = torch.fft.rfft(one, length) * torch.fft.rfft(other, length).conj()
    return torch.fft.irfft(spectrum.sum(0), length)
