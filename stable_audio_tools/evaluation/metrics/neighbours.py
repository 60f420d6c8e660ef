"""Scores from nearest neighbours: precision and recall, density and coverage, memorisation.

All are computed from one vector per file, because windows of one file would be each other's nearest neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics.resampling import Weights, jackknife

Matrix = NDArray[np.float64]
Vectors = NDArray[np.floating]  # (n, d)

NEIGHBOURS = 5
MANIFOLD_SCORES = ("precision", "recall", "density", "coverage")


def manifold_scores(references: Vectors, generated: Vectors, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Compute improved precision and recall (Kynkäänniemi et al. 2019), and density and coverage (Naeem et al. 2020).

    The ball of a vector reaches to its k-th nearest neighbour in its own set. Precision is the share of generated
    vectors inside a ball of a reference, recall the reverse. Density is the number of balls of references around a
    generated vector, over k, and coverage the share of references whose ball contains a generated vector.
    """
    _require(references, generated, neighbours)
    x, y = np.asarray(references, np.float64), np.asarray(generated, np.float64)
    distances = _squared_distances(x, x), _squared_distances(x, y), _squared_distances(y, y)
    return dict(zip(MANIFOLD_SCORES, _manifold(*distances, neighbours).tolist()))


def manifold_intervals(
    references: Vectors, generated: Vectors, neighbours: int = NEIGHBOURS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of the scores expected from sets of these sizes; {} with too few files."""
    x, y = np.asarray(references, np.float64), np.asarray(generated, np.float64)
    xx, xy, yy = _squared_distances(x, x), _squared_distances(x, y), _squared_distances(y, y)

    def scores(u: Weights, v: Weights) -> Matrix:
        i, j = np.flatnonzero(u), np.flatnonzero(v)
        return _manifold(xx[np.ix_(i, i)], xy[np.ix_(i, j)], yy[np.ix_(j, j)], neighbours)

    if min(len(x), len(y)) < 2 * (neighbours + 1):
        return {}
    found = jackknife(scores, len(x), len(y), seed)
    # The scores depend on the number of files by definition, so that dependence is not a bias to remove.
    if found is None:
        return {}
    # Shares move in steps of one file; half a step keeps the interval of a share of 0 or 1 from having no width.
    steps = dict(zip(MANIFOLD_SCORES, (len(y), len(x), neighbours * len(y), len(x))))
    return {name: one.interval(one.value, 0.5 / steps[name]) for name, one in zip(MANIFOLD_SCORES, found)}


def _manifold(xx: Matrix, xy: Matrix, yy: Matrix, neighbours: int) -> Matrix:
    # The nearest of all is the vector itself, at distance 0.
    radius_x, radius_y = (np.partition(own, neighbours, axis=1)[:, neighbours] for own in (xx, yy))
    in_x, in_y = xy < radius_x[:, None], xy < radius_y[None, :]
    density = in_x.sum() / (neighbours * xy.shape[1])
    return np.array([in_x.any(0).mean(), in_y.any(1).mean(), density, in_x.any(1).mean()])


def _require(references: Vectors, generated: Vectors, neighbours: int) -> None:
    if min(len(references), len(generated)) <= neighbours:
        raise UserError(
            f"precision, recall, density and coverage need more than {neighbours} files of each set, "
            f"got {len(references)} and {len(generated)}"
        )


# ------------------------------------------------------------------ memorisation


@dataclass(frozen=True)
class Memorisation:
    """Score of copying from the training set, with its 95 % interval.

    It is 0 for a model that copies nothing and 1 if every generated file is a copy. `nearest` maps each generated file
    to its nearest training file and the ratio of its distances to the nearest training and held-out file, smallest
    first.
    """

    value: float
    low: float | None
    high: float | None
    nearest: Mapping[str, tuple[str, float]]


def memorisation(
    training: Mapping[str, Vectors],
    held_out: Mapping[str, Vectors],
    generated: Mapping[str, Vectors],
    seed: int = 0,
) -> Memorisation:
    """Compare the nearest neighbours of generated files with those expected of a model that copies nothing.

    For such a model training and held-out files are exchangeable, so the nearest of all is a training file with the
    probability n / (n + m) of its share of the files. The score is how far the observed share of training files exceeds
    that, over the largest excess possible. Each mapping is file name -> vector (d,).
    """
    if not (training and held_out and generated):
        raise UserError("the memorisation score needs training, held-out and generated files")
    x, h, y = (np.stack(list(files.values())).astype(np.float64) for files in (training, held_out, generated))
    to_training, to_held_out = _squared_distances(y, x), _squared_distances(y, h)

    def excess(u: Weights, v: Weights) -> Matrix:
        """Score for weights of training and held-out files, one after the other, and of generated files."""
        near, far = to_training[:, u[: len(x)] > 0], to_held_out[:, u[len(x) :] > 0]
        if not (near.size and far.size):
            return np.zeros(1)
        chance = near.shape[1] / (near.shape[1] + far.shape[1])
        share = (near.min(1) < far.min(1)) @ v / v.sum()
        return np.array([(share - chance) / (1 - chance)])

    every = np.ones(len(x) + len(h)), np.ones(len(y))
    value = float(excess(*every)[0])
    found = jackknife(excess, len(every[0]), len(y), seed)
    low, high = (None, None) if found is None else found[0].interval(value, 1 / len(y))
    ratio = np.sqrt(to_training.min(1) / np.maximum(to_held_out.min(1), 1e-30))
    names, sources = list(generated), list(training)
    nearest = {
        names[i]: (sources[int(to_training[i].argmin())], float(ratio[i])) for i in np.argsort(ratio, kind="stable")
    }
    return Memorisation(value, low, high, nearest)


# ------------------------------------------------------------------ diversity


def vendi_score(vectors: Vectors) -> float:
    """Return the effective number of different files: exp of the entropy of the eigenvalues of the cosine kernel.

    It is the Vendi score of Friedman & Dieng 2023, between 1 (all alike) and the number of files (all orthogonal).
    """
    if not len(vectors):
        raise UserError("the Vendi score needs at least 1 file")
    unit = np.asarray(vectors, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    values = np.linalg.eigvalsh(gram / len(unit))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def _squared_distances(x: Matrix, y: Matrix) -> Matrix:
    found: Matrix = np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T, 0)
    return found
