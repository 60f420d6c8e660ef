"""A second look at two recordings: laid over each other at the best offset, do their frames agree?

Tracks of one style use the same sounds as often, but not at the same time. A copy that was shifted, cut or encoded
again does so at one offset.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.dedup.spectrum import FRAMES_PER_SECOND, Frames

_SHORTEST_OVERLAP = 0.5  # of the shorter recording
_QUIET = 1e-6  # of the largest energy; below, an overlap holds nothing to compare


class Aligned(NamedTuple):
    """How two recordings agree where they agree best."""

    score: float  # correlation of what moves in mel bands, or in pitch classes, whichever is lower
    offset_seconds: float  # how much later the first has what the second has


def align(one: Frames, other: Frames) -> Aligned:
    """Compare two recordings at every offset that leaves half of the shorter one."""
    timbre = _correlate(_moving(one.mel), _moving(other.mel))
    pitch = _correlate(_moving(one.chroma), _moving(other.chroma))
    best = int((timbre + pitch).argmax())
    score = torch.minimum(timbre[best], pitch[best])
    later = best if best < one.mel.shape[1] else best - len(timbre)
    return Aligned(round(float(score), 6), later / FRAMES_PER_SECOND)


def _moving(bands: NDArray[np.uint8]) -> Tensor:
    """What is left of each band without its mean: (bands, t) in float64."""
    values = torch.from_numpy(bands).double()
    return values - values.mean(1, keepdim=True)


def _correlate(one: Tensor, other: Tensor) -> Tensor:
    """Correlation at every offset, over the frames that overlap there; -1 where too few do."""
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
    """sum over bands and t of one[t + k] other[t], for k = 0, 1, ... and then from -1 downwards at the end."""
    spectrum = torch.fft.rfft(one, length) * torch.fft.rfft(other, length).conj()
    return torch.fft.irfft(spectrum.sum(0), length)
