"""Mel bands back to the bins of a spectrum: many spectra have the same bands, and both ways choose a non-negative one.

pinv  the smallest solution, its negative values cut off; one product of matrices
nnls  the non-negative solution of least squares, by projected gradients with momentum (Beck & Teboulle 2009)

Where the bands have full rank both give the bands back; where not, `nnls` comes nearer.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.mel.filterbank import MelBands, mel_filterbank

Inversion = Literal["pinv", "nnls"]

_MOST_STEPS = 500
_STEPS_BETWEEN_LOOKS = 20
_LEAST_GAIN = 1e-3  # of the residual, between two looks


@lru_cache(maxsize=16)
def _inverse(bands: MelBands) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.linalg.pinv(mel_filterbank(bands).astype(np.float64))
    return inverse


def invert_mel(mel: Tensor, bands: MelBands, method: Inversion = "pinv") -> Tensor:
    """Bands (b, mels, t) of a magnitude, or of its square, to (b, bins, t) of the same power."""
    inverse = torch.tensor(_inverse(bands), dtype=mel.dtype, device=mel.device)
    spectrum = (inverse @ mel).clamp_min_(0)
    if method == "pinv":
        return spectrum
    bank = torch.tensor(mel_filterbank(bands), dtype=mel.dtype, device=mel.device)
    return _least_squares(bank, mel, spectrum)


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
