"""Intervals over files: delete-group jackknife and paired bootstrap.

Windows of one file are correlated, so the unit of resampling is a block of whole files, never a window. A statistic
takes a weight per block (1: as observed, 0: left out, 2: drawn twice) and returns its values.

The jackknife (Shao & Tu 1995) leaves out one group of blocks at a time. Its variance gives the interval, and the mean
change of the statistic gives the bias of order 1/n, which `corrected` leaves out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stable_audio_tools.core.errors import UserError

Weights = NDArray[np.float64]  # (blocks,)
TwoSets = Callable[[Weights, Weights], NDArray[np.float64]]  # weights of references and of generated -> (k,)

GROUPS = 20
FEWEST_BLOCKS = 4  # of a set; an interval of fewer is not computed
LEVEL = 0.95


@dataclass(frozen=True)
class ScoreEstimate:
    """A score, its value without the bias of order 1/n, its standard error and the degrees of freedom of that."""

    value: float
    corrected: float
    error: float
    freedom: int

    def interval(self, centre: float | None = None, extra_error: float = 0.0) -> tuple[float, float]:
        """Return the 95 % interval around `centre` (default: the corrected value)."""
        middle = self.corrected if centre is None else centre
        reach = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * float(np.hypot(self.error, extra_error))
        return middle - reach, middle + reach


def jackknife(statistic: TwoSets, references: int, generated: int, seed: int = 0) -> list[ScoreEstimate] | None:
    """Return an estimate per value of the statistic, or None if a set has too few blocks.

    `references` and `generated` are numbers of blocks. A set of 0 blocks is fixed, such as published moments.
    """
    sizes = (references, generated)
    if any(0 < size < FEWEST_BLOCKS for size in sizes) or not any(sizes):
        return None
    whole = [np.ones(size) for size in sizes]
    value = statistic(*whole)
    generator = np.random.default_rng(seed)
    corrected, variance, freedom = value.copy(), np.zeros_like(value), GROUPS - 1
    for which, size in enumerate(sizes):
        if not size:
            continue
        count = min(GROUPS, size)
        changed = []
        for group in np.array_split(generator.permutation(size), count):
            weights = [one.copy() for one in whole]
            weights[which][group] = 0
            changed.append(statistic(*weights))
        left_out = np.stack(changed)
        corrected -= (count - 1) * (left_out.mean(0) - value)
        variance += (count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0)
        freedom = min(freedom, count - 1)
    return [
        ScoreEstimate(float(v), float(c), float(np.sqrt(s)), freedom) for v, c, s in zip(value, corrected, variance)
    ]


@dataclass(frozen=True)
class Comparison:
    """Difference a - b of a score with its 95 % interval and two-sided p-value, and the share of resamples below 0."""

    difference: float
    low: float
    high: float
    p: float
    share_below: float


def compare_paired(difference: TwoSets, references: int, pairs: int, seed: int = 0, resamples: int = 500) -> Comparison:
    """Compare two sets that answer the same prompts.

    `difference` returns the score of a minus that of b, (1,), for weights of the references and of the pairs. The
    bootstrap draws pairs together, and references alike for both sets; the interval and the p-value are the
    jackknife's, which is the better calibrated of the two.
    """
    found = jackknife(difference, references, pairs, seed)
    if found is None:
        raise UserError(f"a comparison needs at least {FEWEST_BLOCKS} files of each set, got {pairs} pairs")
    estimate = found[0]
    generator = np.random.default_rng(seed)

    def draw(size: int) -> Weights:
        return (
            np.bincount(generator.integers(size, size=size), minlength=size).astype(np.float64) if size else np.ones(0)
        )

    drawn = np.array([difference(draw(references), draw(pairs))[0] for _ in range(resamples)])
    # Ties count half: each of two equal sets is better equally often.
    below = float((drawn < 0).mean() + (drawn == 0).mean() / 2)
    value, error = estimate.value, estimate.error
    p = 2 * float(stats.t.sf(abs(value) / error, estimate.freedom)) if error > 0 else float(value == 0)
    return Comparison(value, *estimate.interval(value), p, below)
