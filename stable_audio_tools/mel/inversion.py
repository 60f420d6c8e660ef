"""Mel bands back to the bins of a spectrum: many spectra have the same bands, and both ways choose a non-negative one.

pinv  the smallest solution, its negative values cut off, then two steps of Richardson (1972) and Lucy (1974), which
      bring the bands near those that were asked for again
nnls  the non-negative solution of least squares, by projected gradients with momentum (Beck & Teboulle 2009)

The audio of both is about the same; `nnls` keeps the bands more exactly, and takes some fifty times as long.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.mel.filterbank import MelBands, mel_filterbank

Inversion = Literal["pinv", "nnls"]

_CORRECTIONS = 2
_MOST_STEPS = 500
_STEPS_BETWEEN_LOOKS = 20
_LEAST_GAIN = 1e-3  # of the residual, between two looks


@lru_cache(maxsize=16)
def _inverse(bands: MelBands) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.linalg.pinv(mel_filterbank(bands).astype(np.float64))
    return inverse


def invert_mel(mel: Tensor, bands: MelBands, method: Inversion = "pinv") -> Tensor:
    """Bands (b, mels, t) of a magnitude, or of its square, to (b, bins, t) of the same power."""
    bank = torch.tensor(mel_filterbank(bands), dtype=mel.dtype, device=mel.device)
    inverse = torch.tensor(_inverse(bands), dtype=mel.dtype, device=mel.device)
    solution = (inverse @ mel).clamp_min_(0)
    return _correct(bank, mel, solution) if method == "pinv" else _least_squares(bank, mel, solution)


def _correct(bank: Tensor, mel: Tensor, x: Tensor) -> Tensor:
    """Each bin is multiplied by how much its bands fall short, averaged by their weights."""
    tiny = torch.finfo(mel.dtype).tiny
    weight = bank.sum(0)[:, None].clamp_min(tiny)
    x = torch.maximum(x, torch.finfo(mel.dtype).eps * x.amax(1, keepdim=True))  # zero would stay zero
    for _ in range(_CORRECTIONS):
        x = x * ((bank.T @ (mel / (bank @ x).clamp_min(tiny))) / weight)
    return x


def _least_squares(bank: Tensor, mel: Tensor, start: Tensor) -> Tensor:
    """min |bank @ x - mel|^2 over x >= 0, each frame scaled to its loudest band so that all count the same."""
    scale = mel.amax(1, keepdim=True).clamp_min(torch.finfo(mel.dtype).tiny)
    mel, x = mel / scale, start / scale
    step = 1 / float(torch.linalg.matrix_norm(bank, 2)) ** 2
    looked, ahead, momentum = float("inf"), x, 1.0
    for number in range(_MOST_STEPS):
        residual = bank @ ahead - mel
        if number % _STEPS_BETWEEN_LOOKS == 0:
            size = float(residual.norm())
            if size > looked * (1 - _LEAST_GAIN):
                break
            looked = size
        following = (ahead - step * (bank.T @ residual)).clamp_min_(0)
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / grown * (following - x)
        x, momentum = following, grown
    return x * scale
