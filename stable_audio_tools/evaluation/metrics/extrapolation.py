"""Fréchet distance for endlessly many frames (Chong & Forsyth 2020): its bias falls as 1 / n."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics.frechet import Gaussian, frechet_distance, gaussian_of

POINTS = 15
DRAWS = 4  # of each size, whose mean is a point
FEWEST_FRAMES = 10


@dataclass(frozen=True)
class Extrapolation:
    """The straight line distance = value + slope / n through `points` (n, distance), and how well it fits."""

    value: float
    slope: float
    r2: float
    points: tuple[tuple[int, float], ...]


def extrapolate(reference: Gaussian, frames: NDArray[Any], seed: int = 0) -> Extrapolation:
    """Mean distances of random parts of `frames` (n, d), drawn without replacement, from a fifth of them to all.

    The value may be below 0, as an unbiased estimate of a small distance may. The bias of the reference stays in it.
    """
    if len(frames) < FEWEST_FRAMES:
        raise UserError(f"the extrapolated distance needs at least {FEWEST_FRAMES} frames, got {len(frames)}")
    generator = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(max(2, len(frames) // 5), len(frames), POINTS).astype(int))
    distances = [_mean_distance(reference, frames, int(size), generator) for size in sizes]
    slope, value = np.polyfit(1.0 / sizes, distances, 1)
    left = np.square(np.asarray(distances) - (value + slope / sizes)).sum()
    spread = np.square(np.asarray(distances) - np.mean(distances)).sum()
    r2 = 1.0 - float(left / spread) if spread > 0 else 1.0
    points = tuple((int(size), float(distance)) for size, distance in zip(sizes, distances))
    return Extrapolation(float(value), float(slope), r2, points)


def _mean_distance(reference: Gaussian, frames: NDArray[Any], size: int, generator: np.random.Generator) -> float:
    draws = 1 if size == len(frames) else DRAWS
    parts = (frames[generator.permutation(len(frames))[:size]] for _ in range(draws))
    return float(np.mean([frechet_distance(reference, gaussian_of(part)) for part in parts]))
