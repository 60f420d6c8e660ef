"""Distances of spectra as stable-audio-tools 0.0.19 and 0.0.20 compute them.

Magnitudes and complex spectra are (..., bins, frames).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.generations import Generation

CONTRAST_FLOOR = 1e-4
_PLANE = (-2, -1)
_INCREMENT_FLOOR = 1e-3


class Formulas(NamedTuple):
    """The formulas in which the generations differ."""

    convergence: Callable[[Tensor, Tensor, float], Tensor]
    logarithms: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
    phase: Callable[[Tensor, Tensor], Tensor]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=_PLANE, keepdim=True)


def convergence(x_mag: Tensor, y_mag: Tensor, floor: float) -> Tensor:
    """Return the norm of the difference over the norm of the second; `floor` is not used."""
    return _norm(y_mag - x_mag) / _norm(y_mag)


def contrast(x_mag: Tensor, y_mag: Tensor, floor: float) -> Tensor:
    """Return the norm of the difference over the norm of the sum, the latter at least `floor`."""
    x_mag, y_mag = x_mag.float(), y_mag.float()
    return _norm(y_mag - x_mag) / _norm(x_mag + y_mag).clamp(min=floor)


def plain_logarithms(x_mag: Tensor, y_mag: Tensor, factor: float, offset: float) -> tuple[Tensor, Tensor]:
    """Return log(factor * magnitude + offset) of both."""
    return torch.log(factor * x_mag + offset), torch.log(factor * y_mag + offset)


def adaptive_logarithms(x_mag: Tensor, y_mag: Tensor, factor: float, offset: float) -> tuple[Tensor, Tensor]:
    """Return log(1 + magnitude / deviation) of both; the deviations of both, added in quadrature, get no gradient."""
    deviations = [mag.detach().std(dim=_PLANE, keepdim=True).clamp(min=1e-4).square() for mag in (x_mag, y_mag)]
    scale = (deviations[0] + deviations[1]).sqrt()
    return torch.log(x_mag / scale + 1), torch.log(y_mag / scale + 1)


def relative_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of complex numbers, relative to their mean magnitude."""
    return (x - y).abs() / (0.5 * (x.abs() + y.abs()) + 1e-7)


def complex_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of log(1 + squared distance / its deviation), plus the distance of phase increments."""
    squares = (x - y).abs().square()
    scale = squares.detach().std(dim=_PLANE, keepdim=True).clamp(min=1e-5)
    return torch.log(squares / scale + 1).mean() + _increments(x, y) + _increments(x.mT, y.mT)


def _increments(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of 1 - cos of the difference of phase increments along the last axis, weighted by magnitude.

    Along time these increments are instantaneous frequencies, along frequency group delays.
    """
    turns, sizes = [], []
    for z in (x, y):
        size = (z[..., 1:].abs() * z[..., :-1].abs()).clamp(min=_INCREMENT_FLOOR)
        turns.append(z[..., 1:] * z[..., :-1].conj() / size)
        sizes.append(size)
    weight = (sizes[0] * sizes[1]).sqrt().clamp(min=_INCREMENT_FLOOR).detach()
    weight = weight / weight.mean().clamp(min=1e-7)
    return ((1 - (turns[0] * turns[1].conj()).real) * weight).mean()


def cepstra(x: Tensor, y: Tensor, factor: float, offset: float) -> tuple[Tensor, Tensor]:
    """Return the cepstra of two complex spectra; the cepstrum of a silent second one is zero."""
    first, second = (torch.fft.irfft(torch.log(factor * z.abs() + offset), dim=-2) for z in (x, y))
    return first, torch.where(y.std() < 1e-6, torch.zeros_like(second), second)


_PUBLISHED = Formulas(convergence, plain_logarithms, relative_distance)
_NEXT = Formulas(contrast, adaptive_logarithms, complex_distance)
FORMULAS: dict[Generation, Formulas] = {"0.0.19": _PUBLISHED, "0.0.20": _NEXT, "stable-audio-3": _NEXT}
