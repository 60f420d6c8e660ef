"""Fréchet distance of two Gaussians: |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2).

With C = F^T F the last trace is the sum of the singular values of P = F1 F2^T, which is real and never negative. F has
at most as many rows as there are frames, so few frames cost little and a singular covariance is not a special case. If
P is large and well conditioned, the square roots of the eigenvalues of P P^T give the same numbers faster. Everything
is float64.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics.resampling import ScoreEstimate, Weights, jackknife

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float64]
Vectors = NDArray[np.floating]  # (n, d)

_SMALLEST_SHARE = 1e-8  # of the largest eigenvalue; above it the roots are accurate to 12 digits
_MOST_NUMBERS = 2**24  # float64 numbers in the moments of all blocks, 134 MB
_FEWEST_BLOCKS = 16
POINTS = 10
DRAWS = 8  # random subsets per point
FEWEST_FILES = 8


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,), and F (r, d) with F^T F the unbiased covariance; `count` is None if unknown."""

    mean: Matrix
    factor: Matrix
    count: int | None

    @cached_property
    def variance(self) -> float:
        """Trace of the covariance."""
        return float(np.square(self.factor).sum())

    @property
    def is_singular(self) -> bool:
        """Are there too few frames for a covariance of full rank?"""
        return self.count is not None and self.count <= len(self.mean)


def gaussian_of(frames: Vectors) -> Gaussian:
    """Compute the moments of frames (n, d)."""
    if len(frames) < 2:
        raise UserError(f"a covariance needs at least 2 frames, got {len(frames)}")
    values = np.asarray(frames, dtype=np.float64)
    mean = values.mean(axis=0)
    centred = (values - mean) / np.sqrt(len(values) - 1)
    count, width = centred.shape
    return Gaussian(mean, centred if count <= width else factor_of(centred.T @ centred), count)


def gaussian_from_moments(mean: Vectors, covariance: Vectors, count: int | None = None) -> Gaussian:
    """Check moments computed elsewhere and convert them to a Gaussian."""
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if covariance.shape != (len(mean), len(mean)) or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"the statistics are broken: mean {mean.shape}, covariance {covariance.shape}, or not finite")
    return Gaussian(mean, factor_of((covariance + covariance.T) / 2), count)


def factor_of(covariance: Matrix) -> Matrix:
    """Return F with F^T F = C, by Cholesky, or by eigenvalues if C is singular."""
    try:
        factor: Matrix = linalg.cholesky(covariance, check_finite=False)
        return factor
    except linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        positive = values > values[-1] * len(values) * np.finfo(np.float64).eps
        scaled: Matrix = np.sqrt(values[positive])[:, None] * vectors[:, positive].T
        return scaled


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the squared distance, as is the custom; at least 0."""
    if len(a.mean) != len(b.mean):
        raise UserError(f"vectors of {len(a.mean)} and {len(b.mean)} numbers cannot be compared")
    product = a.factor @ b.factor.T
    values = np.linalg.eigvalsh(product @ product.T if len(product) <= product.shape[1] else product.T @ product)
    # The error of an eigenvalue is eps times the largest one, and that of its root is this over twice the root.
    if len(values) and values[0] > _SMALLEST_SHARE * values[-1]:
        roots = np.sqrt(values).sum()
    else:
        roots = np.linalg.svd(product, compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + a.variance + b.variance - 2 * roots
    return max(0.0, float(distance))


def warn_of_few_frames(name: str, gaussian: Gaussian) -> None:
    """Warn that a covariance of deficient rank biases distances upwards."""
    if gaussian.is_singular:
        logger.warning(
            "%s: %d frames for vectors of %d numbers; the distance is biased upwards. Use more audio, or compare "
            "fad_inf and the kernel distance",
            name,
            gaussian.count,
            len(gaussian.mean),
        )


# ------------------------------------------------------------------ intervals over files


class FileMoments:
    """Moments of a set of files in blocks of whole files, from which weighted Gaussians are computed quickly.

    A block is one file as long as the moments of all blocks fit into memory.
    """

    def __init__(self, files: Sequence[Vectors], seed: int = 0) -> None:
        width = files[0].shape[1]
        most = max(_FEWEST_BLOCKS, _MOST_NUMBERS // width**2)
        order = np.random.default_rng(seed).permutation(len(files)) if len(files) > most else np.arange(len(files))
        parts = [
            np.concatenate([np.asarray(files[index], np.float64) for index in block])
            for block in np.array_split(order, min(most, len(files)))
        ]
        self.blocks, self.files = len(parts), len(files)
        self._counts = np.array([len(part) for part in parts], np.float64)
        self._centre = sum(part.sum(0) for part in parts) / self._counts.sum()
        parts = [part - self._centre for part in parts]
        self._sums = np.stack([part.sum(0) for part in parts])
        # With few frames the frames themselves are the cheaper factor.
        self._frames = np.concatenate(parts) if self._counts.sum() <= width else None
        self._scatters = None if self._frames is not None else np.stack([part.T @ part for part in parts])

    def gaussian(self, weights: Weights) -> Gaussian:
        """Compute the Gaussian of the blocks, each counted `weights` times."""
        count = float(weights @ self._counts)
        if count < 2:
            raise UserError(f"a covariance needs at least 2 frames, got {count:.0f}")
        mean = weights @ self._sums / count
        if self._frames is not None:
            repeated = np.repeat(weights, self._counts.astype(int))
            used = repeated > 0
            rows = np.sqrt(repeated[used] / (count - 1))[:, None] * (self._frames[used] - mean)
            return Gaussian(mean + self._centre, rows, round(count))
        assert self._scatters is not None
        scatter = np.tensordot(weights, self._scatters, 1) - count * np.outer(mean, mean)
        return Gaussian(mean + self._centre, factor_of(scatter / (count - 1)), round(count))


@dataclass(frozen=True)
class Sides:
    """A reference, as files or as published moments alone, and generated files."""

    reference: "FileMoments | Gaussian"
    generated: FileMoments

    @property
    def blocks(self) -> tuple[int, int]:
        """Numbers of blocks of both sides; 0 for published moments."""
        return (self.reference.blocks if isinstance(self.reference, FileMoments) else 0), self.generated.blocks

    def distance(self, reference: Weights, generated: Weights) -> Matrix:
        """Return the distance (1,) for weights of the blocks."""
        known = self.reference.gaussian(reference) if isinstance(self.reference, FileMoments) else self.reference
        return np.array([frechet_distance(known, self.generated.gaussian(generated))])

    def estimate(self, seed: int = 0) -> ScoreEstimate | None:
        """Return the distance with its error over files, or None if there are too few files."""
        found = jackknife(self.distance, *self.blocks, seed)
        return None if found is None else found[0]


@dataclass(frozen=True)
class Extrapolation:
    """The straight line distance = value + slope / share through `points` (share of the files, mean distance)."""

    value: float
    error: float  # standard error of the value from the random subsets alone
    slope: float
    r2: float
    points: tuple[tuple[float, float], ...]


def extrapolate(sides: Sides, seed: int = 0) -> Extrapolation:
    """Extrapolate the distance to infinitely many files (Chong & Forsyth 2020): its bias falls as 1 / n.

    The points are mean distances of random subsets of whole files, from half of the files to all. Both sets are thinned
    alike, so the bias of the reference is removed as well, unless it is published moments. The value may be below 0, as
    an unbiased estimate of a small distance may.
    """
    if sides.generated.files < FEWEST_FILES:
        raise UserError(f"the extrapolated distance needs at least {FEWEST_FILES} files, got {sides.generated.files}")
    generator = np.random.default_rng(seed)

    def subset(blocks: int, share: float) -> Weights:
        weights = np.zeros(blocks)
        weights[generator.permutation(blocks)[: max(2, round(blocks * share))]] = 1
        return weights

    shares, distances = [], []
    for share in np.linspace(0.5, 1, POINTS):
        for _ in range(1 if share == 1 else DRAWS):
            weights = [subset(blocks, share) for blocks in sides.blocks]
            shares.append(weights[1].mean())  # the share after rounding
            distances.append(sides.distance(*weights)[0])
    x, y = 1 / np.asarray(shares), np.asarray(distances)
    design = np.stack([np.ones_like(x), x], 1)
    (value, slope), _, _, _ = np.linalg.lstsq(design, y, rcond=None)
    left, spread = np.square(y - design @ (value, slope)).sum(), np.square(y - y.mean()).sum()
    error = np.sqrt(left / (len(y) - 2) * np.linalg.inv(design.T @ design)[0, 0])
    means = tuple((float(share), float(y[x == 1 / share].mean())) for share in sorted(set(shares)))
    return Extrapolation(float(value), float(error), float(slope), float(1 - left / spread) if spread else 1.0, means)
