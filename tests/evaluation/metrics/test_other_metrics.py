"""Kernel distance, density and coverage, agreement of pairs: against direct sums."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics import kernel
from stable_audio_tools.evaluation.metrics.coverage import density_and_coverage
from stable_audio_tools.evaluation.metrics.kernel import kernel_distance
from stable_audio_tools.evaluation.metrics.pairs import alignment, kl_divergence


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def test_kernel_distance_is_the_u_statistic() -> None:
    a, b = normal(7, 3, 0), normal(5, 3, 1)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    same_a = np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    same_b = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b).value == pytest.approx(same_a + same_b - 2 * across, rel=1e-12)


def test_kernel_distance_is_unbiased_and_its_interval_holds_the_truth() -> None:
    found = [kernel_distance(normal(40, 4, 2 * s), normal(40, 4, 2 * s + 1), seed=s) for s in range(30)]
    values = [one.value for one in found]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(30)  # no bias, whatever the size
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.8
    apart = kernel_distance(normal(60, 4, 0), normal(60, 4, 1, shift=1.0))
    assert apart.low > 0


def test_large_sets_are_judged_by_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MOST_POINTS", 20)
    a, b = normal(50, 3, 0), normal(10, 3, 1)
    found = kernel_distance(a, b, seed=1)
    assert found.points == (20, 10)
    assert found == kernel_distance(a, b, seed=1) != kernel_distance(a, b, seed=2)
    with pytest.raises(UserError, match="at least 2 vectors of each set, got 1 and 10"):
        kernel_distance(a[:1], b)


def test_density_and_coverage_by_hand() -> None:
    """References 0, 1, 2, ..., 9 on a line; with k = 1 each ball reaches its neighbours."""
    line = np.arange(10.0)[:, None]
    found = density_and_coverage(line, np.array([[0.0], [0.5]]), neighbours=1)
    assert found.coverage == pytest.approx(2 / 10)  # the balls of 0 and of 1
    assert found.density == pytest.approx((2 + 2) / 2)
    far = density_and_coverage(line, np.array([[100.0]]), neighbours=1)
    assert (far.density, far.coverage) == (0, 0)
    assert density_and_coverage(line, line).coverage == 1
    with pytest.raises(UserError, match="need more than 5 references"):
        density_and_coverage(line[:5], line)


def test_collapse_lowers_coverage_and_not_density() -> None:
    reference = normal(300, 8, 0)
    collapsed = density_and_coverage(reference, np.repeat(reference[:3], 100, axis=0))
    whole = density_and_coverage(reference, normal(300, 8, 1))
    assert collapsed.coverage < 0.3 < whole.coverage
    assert whole.density == pytest.approx(1, abs=0.15)


def test_alignment_is_the_cosine_of_pairs() -> None:
    a, b = normal(6, 5, 0), normal(6, 5, 1)
    wanted = F.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b))
    found = alignment(a, b)
    assert found.cosines == pytest.approx(wanted.tolist(), rel=1e-12)
    assert found.mean == pytest.approx(float(wanted.mean()))
    assert found.std == pytest.approx(float(wanted.std(correction=0)))
    with pytest.raises(UserError, match="6 texts and 5 sounds"):
        alignment(a, b[:5])


def test_kl_divergence_is_torchs() -> None:
    p, q = normal(6, 5, 0), normal(6, 5, 1)
    wanted = F.kl_div(
        torch.from_numpy(q).log_softmax(1), torch.from_numpy(p).log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert kl_divergence(p, q) == pytest.approx(float(wanted), rel=1e-12)
    assert kl_divergence(p, p) == pytest.approx(0, abs=1e-15)
    with pytest.raises(UserError, match="pairs of unlike shape"):
        kl_divergence(p, q[:5])
