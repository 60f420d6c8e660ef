"""Precision, recall, density, coverage, memorisation and diversity, by hand and against their definitions."""

import numpy as np
import pytest

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics.neighbours import manifold_scores, memorisation, vendi_score


def normal(count: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def named(vectors: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{index:03d}": vector for index, vector in enumerate(vectors)}


def test_equal_to_the_loops_of_the_papers() -> None:
    """Balls with open borders, as in the authors' package prdc."""
    x, y, k = normal(25, 3, 0), 0.7 * normal(20, 3, 1) + 0.3, 4

    def radius(own: np.ndarray, index: int) -> float:
        return sorted(np.linalg.norm(own - own[index], axis=1))[k]

    in_x = np.array([[np.linalg.norm(a - b) < radius(x, i) for b in y] for i, a in enumerate(x)])
    in_y = np.array([[np.linalg.norm(a - b) < radius(y, j) for j, b in enumerate(y)] for a in x])
    assert manifold_scores(x, y, k) == pytest.approx(
        {
            "precision": in_x.any(0).mean(),
            "recall": in_y.any(1).mean(),
            "density": in_x.sum() / (k * 20),
            "coverage": in_x.any(1).mean(),
        }
    )
    with pytest.raises(UserError, match="need more than 5 files of each set, got 5 and 20"):
        manifold_scores(x[:5], y)


def test_collapse_lowers_recall_and_coverage_alone() -> None:
    reference = normal(300, 8, 0)
    collapsed = manifold_scores(reference, reference[:10].repeat(30, 0) + 1e-3 * normal(300, 8, 1))
    honest = manifold_scores(reference, normal(300, 8, 2))
    assert collapsed["recall"] < 0.1 < 0.8 < honest["recall"]
    assert collapsed["coverage"] < 0.4 < honest["coverage"]
    assert collapsed["precision"] > 0.95 and honest["density"] == pytest.approx(1, abs=0.15)


def test_a_memorised_model_is_distinguished_from_an_honest_one() -> None:
    """Training set played back with noise, against new draws of the same law."""
    training, held_out = normal(200, 16, 0), normal(150, 16, 1)
    copies = training[:60] + 0.3 * normal(60, 16, 2)
    copying = memorisation(named(training), named(held_out), named(copies))
    honest = memorisation(named(training), named(held_out), named(normal(60, 16, 3)))
    assert copying.low is not None and honest.low is not None and honest.high is not None
    assert copying.value > 0.95 and copying.low > 0.5
    assert honest.low < 0 < honest.high
    assert [copying.nearest[f"{i:03d}"][0] for i in range(60)] == [f"{i:03d}" for i in range(60)]
    assert next(iter(copying.nearest.values()))[1] < 0.5
    half = memorisation(named(training), named(held_out), named(np.concatenate([copies[:6], normal(54, 16, 4)])))
    assert sum(int(name) < 6 for name in list(half.nearest)[:6]) == 6  # the copies lead the list


@pytest.mark.parametrize(("training", "held_out"), [(60, 60), (120, 40), (40, 80)])
def test_the_score_of_an_honest_model_is_zero_whatever_the_sizes(training: int, held_out: int) -> None:
    found = [
        memorisation(*(named(normal(size, 8, 3 * seed + part)) for part, size in enumerate((training, held_out, 40))))
        for seed in range(60)
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / 60**0.5
    assert np.mean([one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in found]) >= 0.9
    with pytest.raises(UserError, match="needs training, held-out and generated files"):
        memorisation({}, named(normal(held_out, 8, 0)), named(normal(40, 8, 1)))


def test_vendi_score_counts_different_files() -> None:
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.eye(7).repeat(5, 0)) == pytest.approx(7)
    assert vendi_score(np.ones((9, 3))) == pytest.approx(1)
    x = normal(12, 4, 0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 12)
    values = values[values > 1e-15]
    assert vendi_score(x) == pytest.approx(np.exp(-(values * np.log(values)).sum()))
