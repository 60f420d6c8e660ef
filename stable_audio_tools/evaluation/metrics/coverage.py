"""Density and coverage (Naeem et al. 2020): is what was made like the references, and are all of these reached?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError

NEIGHBOURS = 5
_ROWS = 1024  # of the distance matrix at a time


@dataclass(frozen=True)
class Coverage:
    """Around 1 for equal sets: balls of references that a vector lies in, over k; references with one in their ball."""

    density: float
    coverage: float


def density_and_coverage(reference: NDArray[Any], made: NDArray[Any], neighbours: int = NEIGHBOURS) -> Coverage:
    """Of vectors (n, d) and (m, d); a reference's ball ends at its k-th nearest reference."""
    if len(reference) <= neighbours or not len(made):
        raise UserError(
            f"density and coverage need more than {neighbours} references and a vector to judge, "
            f"got {len(reference)} and {len(made)}"
        )
    x, y = np.asarray(reference, np.float64), np.asarray(made, np.float64)
    inside, covered = 0, 0
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        # The nearest of all is the reference itself, at distance 0.
        radius = np.partition(_squared_distances(rows, x), neighbours, axis=1)[:, neighbours]
        hits = _squared_distances(rows, y) <= radius[:, None]
        inside += int(hits.sum())
        covered += int(hits.any(axis=1).sum())
    return Coverage(inside / (neighbours * len(y)), covered / len(x))


def _squared_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    products = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return np.maximum(products, 0)
