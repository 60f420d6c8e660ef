"""Fréchet distance of two Gaussians: |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2).

With C = F^T F the last trace is the sum of the singular values of P = F1 F2^T: real and never negative, without a
square root of a product that is not symmetric. F has no more rows than there are frames, so few frames cost little, and
a covariance that is singular is no special case. Where P is large and well conditioned, the roots of the eigenvalues of
P P^T are the same numbers sooner. Everything is float64.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from stable_audio_tools.core.errors import UserError

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float64]

_SMALLEST_SHARE = 1e-8  # of the largest eigenvalue: down to here the roots are right to 12 digits


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,), and F (r, d) with F^T F the unbiased covariance; `count` is None where a file does not tell it."""

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


def gaussian_of(frames: NDArray[Any]) -> Gaussian:
    """Moments of frames (n, d)."""
    if len(frames) < 2:
        raise UserError(f"a covariance needs at least 2 frames, got {len(frames)}")
    values = np.asarray(frames, dtype=np.float64)
    mean = values.mean(axis=0)
    centred = (values - mean) / np.sqrt(len(values) - 1)
    count, width = centred.shape
    return Gaussian(mean, centred if count <= width else factor_of(centred.T @ centred), count)


def gaussian_from_moments(mean: NDArray[Any], covariance: NDArray[Any], count: int | None = None) -> Gaussian:
    """Moments that somebody else computed."""
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if covariance.shape != (len(mean), len(mean)) or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"the statistics are broken: mean {mean.shape}, covariance {covariance.shape}, or not finite")
    return Gaussian(mean, factor_of((covariance + covariance.T) / 2), count)


def factor_of(covariance: Matrix) -> Matrix:
    """F with F^T F = C; by Cholesky, or by eigenvalues where C is singular."""
    try:
        factor: Matrix = linalg.cholesky(covariance, check_finite=False)
        return factor
    except linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        scaled: Matrix = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
        return scaled


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The distance, squared as is the custom; at least 0."""
    if len(a.mean) != len(b.mean):
        raise UserError(f"vectors of {len(a.mean)} and {len(b.mean)} numbers cannot be compared")
    roots = _nuclear_norm(a.factor @ b.factor.T)
    distance = np.square(a.mean - b.mean).sum() + a.variance + b.variance - 2 * roots
    return max(0.0, float(distance))


def _nuclear_norm(product: Matrix) -> float:
    """Sum of the singular values of P."""
    values = np.linalg.eigvalsh(product @ product.T if len(product) <= product.shape[1] else product.T @ product)
    # An eigenvalue is off by eps times the largest one, and its root by that over twice the root.
    if values[0] > _SMALLEST_SHARE * values[-1]:
        return float(np.sqrt(values).sum())
    return float(np.linalg.svd(product, compute_uv=False).sum())


def warn_of_few_frames(name: str, gaussian: Gaussian) -> None:
    """A covariance of deficient rank makes distances too large."""
    if gaussian.is_singular:
        logger.warning(
            "%s: %d frames for vectors of %d numbers; the distance is biased upwards. Use more audio, or look at the "
            "extrapolated and the kernel distance",
            name,
            gaussian.count,
            len(gaussian.mean),
        )
