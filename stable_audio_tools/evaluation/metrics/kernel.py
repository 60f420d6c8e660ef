"""Kernel distances: squared maximum mean discrepancy (Gretton et al. 2012) over files, and KAD as kadtk computes it.

Windows of one file resemble each other. A pair of windows of the same file says nothing about the law that files come
from, so the estimate leaves such pairs out, and its interval comes from leaving out files. KAD (Chung et al. 2025)
counts all pairs of frames, so that it equals kadtk's number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics.resampling import ScoreEstimate, Weights, jackknife

Matrix = NDArray[np.float64]
Vectors = NDArray[np.floating]  # (n, d)
Kernel = Literal["cubic", "gaussian"]

MOST_FRAMES = 6000  # of each set, evenly spaced in each file
_ROWS = 1024  # of a kernel matrix at a time
_KAD_SCALE = 100.0
_KAD_EPS = 1e-8


class KernelSides:
    """Kernel means of all pairs of files of two sets, (f, g) each, from which the distance is computed for any weights.

    The kernel is (x . y / d + 1)^3 (Binkowski et al. 2018), or exp(-|x - y|^2 / 2 b^2) with b the median distance of
    generated frames.
    """

    def __init__(self, references: Sequence[Vectors], generated: Sequence[Vectors], kernel: Kernel = "cubic") -> None:
        if min(len(references), len(generated)) < 2:
            raise UserError(
                f"the kernel distance needs at least 2 files of each set, got {len(references)} and {len(generated)}"
            )
        x, y = _thin(references), _thin(generated)
        self.frames = (sum(map(len, x)), sum(map(len, y)))
        self.bandwidth = median_distance(np.concatenate(y)) if kernel == "gaussian" else None
        self._counts = np.array([len(one) for one in x], np.float64), np.array([len(one) for one in y], np.float64)
        self._within_x, self._within_y, self._across = (
            _file_sums(one, other, self.bandwidth) for one, other in ((x, x), (y, y), (x, y))
        )
        np.fill_diagonal(self._within_x, 0)
        np.fill_diagonal(self._within_y, 0)

    def distance(self, references: Weights, generated: Weights) -> Matrix:
        """Return the distance (1,) for weights of the files; a file drawn twice is not compared with itself."""
        (n, m), (u, v) = self._counts, (references, generated)

        def within(sums: Matrix, weights: Weights, counts: Matrix) -> float:
            pairs = float(weights @ counts) ** 2 - float(np.square(weights * counts).sum())
            return float(weights @ sums @ weights) / pairs

        across = float(u @ self._across @ v) / (float(u @ n) * float(v @ m))
        return np.array([within(self._within_x, u, n) + within(self._within_y, v, m) - 2 * across])

    @property
    def files(self) -> tuple[int, int]:
        """Numbers of files of both sets."""
        return len(self._counts[0]), len(self._counts[1])


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased estimate, which may be below 0, its 95 % interval over files, and what it is computed from."""

    value: float
    low: float | None  # None with too few files
    high: float | None
    files: tuple[int, int]
    frames: tuple[int, int]
    bandwidth: float | None = None  # of the Gaussian kernel


def kernel_distance(
    references: Sequence[Vectors], generated: Sequence[Vectors], seed: int = 0, kernel: Kernel = "cubic"
) -> KernelDistance:
    """Compare the files of two sets, each an array (frames, d)."""
    sides = KernelSides(references, generated, kernel)
    found: list[ScoreEstimate] | None = jackknife(sides.distance, *sides.files, seed)
    value = float(sides.distance(*(np.ones(count) for count in sides.files))[0])
    low, high = (None, None) if found is None else found[0].interval(value)
    return KernelDistance(value, low, high, sides.files, sides.frames, sides.bandwidth)


def kad(references: Vectors, generated: Vectors) -> float:
    """Return the kernel audio distance of kadtk: frames count as independent, Gaussian kernel, times 100."""
    x, y = np.asarray(references, np.float64), np.asarray(generated, np.float64)
    if min(len(x), len(y)) < 2:
        raise UserError(f"KAD needs at least 2 frames of each set, got {len(x)} and {len(y)}")
    bandwidth = median_distance(y)
    sums = [float(_file_sums([one], [other], bandwidth)[0, 0]) for one, other in ((x, x), (y, y), (x, y))]
    m, n = len(x), len(y)
    # A vector has a kernel of 1 with itself.
    return _KAD_SCALE * ((sums[0] - m) / (m * (m - 1)) + (sums[1] - n) / (n * (n - 1)) - 2 * sums[2] / (m * n))


def median_distance(vectors: Vectors) -> float:
    """Return the lower median of the distances of all pairs, of at most 6,000 evenly spaced vectors."""
    values = np.asarray(vectors, np.float64)
    values = values[_even(len(values), MOST_FRAMES)]
    rows, columns = np.triu_indices(len(values), 1)
    distances = np.concatenate(
        [
            np.sqrt(_squared_distances(values[start : start + _ROWS], values))[
                rows[(part := (rows >= start) & (rows < start + _ROWS))] - start, columns[part]
            ].astype(np.float32)
            for start in range(0, len(values), _ROWS)
        ]
    )
    middle = (len(distances) - 1) // 2
    return float(np.partition(distances, middle)[middle])


def _file_sums(x: Sequence[Vectors], y: Sequence[Vectors], bandwidth: float | None) -> Matrix:
    """Return the sum of the kernel over the frames of each pair of files, (files of x, files of y)."""
    every = np.concatenate(y)
    starts = np.cumsum([0, *(len(one) for one in y)])[:-1]
    rows = []
    for file in x:
        total = np.zeros(len(every))
        for start in range(0, len(file), _ROWS):
            part = file[start : start + _ROWS]
            if bandwidth is None:
                kernel = (part @ every.T / every.shape[1] + 1) ** 3
            else:
                kernel = np.exp(-_squared_distances(part, every) / (2 * bandwidth**2 + _KAD_EPS))
            total += kernel.sum(0)
        rows.append(np.add.reduceat(total, starts))
    return np.stack(rows)


def _squared_distances(x: Matrix, y: Matrix) -> Matrix:
    found: Matrix = np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T, 0)
    return found


def _thin(files: Sequence[Vectors]) -> list[Matrix]:
    """Keep evenly spaced frames of each file, so that all files together have at most `MOST_FRAMES`."""
    share = min(1.0, MOST_FRAMES / sum(map(len, files)))
    return [np.asarray(file, np.float64)[_even(len(file), max(1, int(len(file) * share)))] for file in files]


def _even(count: int, most: int) -> NDArray[np.intp]:
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.intp)
