"""Kernel distance: unbiased squared maximum mean discrepancy (Gretton et al. 2012), as in KID, with an interval."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError

MOST_POINTS = 3000  # of each set; three matrices of 72 MB
RESAMPLES = 200
LEVEL = 0.95

_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class KernelDistance:
    """The estimate, which may be below 0, and its bootstrap interval; `points` of each set took part."""

    value: float
    low: float
    high: float
    points: tuple[int, int]


def kernel_distance(a: NDArray[Any], b: NDArray[Any], seed: int = 0) -> KernelDistance:
    """Of vectors (n, d) and (m, d), with the kernel (x . y / d + 1)^3 (Binkowski et al. 2018)."""
    if min(len(a), len(b)) < 2:
        raise UserError(f"the kernel distance needs at least 2 vectors of each set, got {len(a)} and {len(b)}")
    generator = np.random.default_rng(seed)
    x, y = _some(a, generator), _some(b, generator)
    within_x, within_y, across = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(within_x, 0)
    np.fill_diagonal(within_y, 0)

    def estimate(u: _Matrix, v: _Matrix) -> float:
        # A vector drawn twice does not meet itself: that would put the bias back that the estimator leaves out.
        pairs_x, pairs_y = u.sum() ** 2 - np.square(u).sum(), v.sum() ** 2 - np.square(v).sum()
        same = u @ within_x @ u / pairs_x + v @ within_y @ v / pairs_y
        return float(same - 2 * (u @ across @ v) / (u.sum() * v.sum()))

    value = estimate(np.ones(len(x)), np.ones(len(y)))
    resampled = [estimate(_counts(len(x), generator), _counts(len(y), generator)) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return KernelDistance(value, float(low), float(high), (len(x), len(y)))


def _kernel(x: _Matrix, y: _Matrix) -> _Matrix:
    kernel: _Matrix = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _some(vectors: NDArray[Any], generator: np.random.Generator) -> _Matrix:
    values = np.asarray(vectors, np.float64)
    return values if len(values) <= MOST_POINTS else values[generator.permutation(len(values))[:MOST_POINTS]]


def _counts(count: int, generator: np.random.Generator) -> _Matrix:
    """How often each vector is drawn when `count` are drawn with replacement, at least two of them different."""
    while True:
        drawn = np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)
        if np.count_nonzero(drawn) > 1:
            return drawn
