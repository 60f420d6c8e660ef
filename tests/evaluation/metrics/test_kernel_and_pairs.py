"""Kernel distances and agreement of pairs, against direct sums and torch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics import kernel
from stable_audio_tools.evaluation.metrics.kernel import kad, kernel_distance, median_distance
from stable_audio_tools.evaluation.metrics.pairs import alignment, kl_divergences


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def files(lengths: tuple[int, ...], width: int, seed: int) -> list[np.ndarray]:
    return [normal(length, width, seed + index) for index, length in enumerate(lengths)]


def test_kernel_distance_leaves_out_pairs_of_one_file() -> None:
    a, b = files((3, 2, 4, 1), 3, 0), files((2, 2, 3), 3, 10)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    def within(sets: list[np.ndarray]) -> float:
        return np.mean([
            k(x, y) for i, one in enumerate(sets) for j, other in enumerate(sets) if i != j for x in one for y in other
        ])  # fmt: skip

    across = np.mean([k(x, y) for x in np.concatenate(a) for y in np.concatenate(b)])
    found = kernel_distance(a, b)
    assert found.value == pytest.approx(within(a) + within(b) - 2 * across, rel=1e-12)
    assert (found.files, found.frames) == ((4, 3), (10, 7))
    assert found.low is None and found.high is None  # an interval needs four files of each set
    with pytest.raises(UserError, match="at least 2 files of each set, got 1 and 3"):
        kernel_distance(a[:1], b)


def test_one_window_per_file_is_the_u_statistic() -> None:
    a, b = normal(7, 3, 0), normal(5, 3, 1)
    k = (a @ a.T / 3 + 1) ** 3, (b @ b.T / 3 + 1) ** 3, (a @ b.T / 3 + 1) ** 3
    expected = (k[0].sum() - np.trace(k[0])) / 42 + (k[1].sum() - np.trace(k[1])) / 20 - 2 * k[2].mean()
    assert kernel_distance([x[None] for x in a], [y[None] for y in b]).value == pytest.approx(expected, rel=1e-12)


def test_long_sets_are_thinned_evenly_in_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = files((50, 50, 50, 50), 3, 0), files((10,) * 4, 3, 10)
    monkeypatch.setattr(kernel, "MOST_FRAMES", 20)
    found = kernel_distance(a, b)
    assert found.frames == (20, 20) and found == kernel_distance(a, b)
    kept = [x[np.linspace(0, 49, 5).round().astype(int)] for x in a], [y[[0, 2, 4, 7, 9]] for y in b]
    monkeypatch.undo()
    assert kernel_distance(*kept).value == pytest.approx(found.value, abs=0.2)


def test_kad_is_the_formula_of_kadtk() -> None:
    """Gaussian kernel, median distance of the generated frames, all pairs but a frame with itself, times 100."""
    x, y = torch.from_numpy(normal(40, 6, 0)), torch.from_numpy(normal(30, 6, 1, shift=0.5))
    bandwidth = torch.median(torch.pdist(y.float())).item()
    assert median_distance(y.numpy()) == pytest.approx(bandwidth, rel=1e-6)
    gamma = 1 / (2 * bandwidth**2 + 1e-8)
    xx, yy, xy = (torch.exp(-gamma * torch.cdist(p, q).square()) for p, q in ((x, x), (y, y), (x, y)))
    same = (xx.sum() - 40) / (40 * 39) + (yy.sum() - 30) / (30 * 29)
    assert kad(x.numpy(), y.numpy()) == pytest.approx(100 * float(same - 2 * xy.mean()), rel=1e-6)


def test_alignment_is_the_mean_cosine_of_windows() -> None:
    texts, one = normal(6, 5, 0), normal(6, 5, 1)
    expected = F.cosine_similarity(torch.from_numpy(texts), torch.from_numpy(one))
    found = alignment(texts, list(one))
    assert found.cosines == pytest.approx(expected.tolist(), rel=1e-12)
    assert found.mean == pytest.approx(float(expected.mean()))
    assert found.std == pytest.approx(float(expected.std(correction=0)))
    with pytest.raises(UserError, match="6 texts and 5 sounds"):
        alignment(texts, list(one[:5]))


def test_agreement_does_not_depend_on_the_number_of_windows() -> None:
    """Windows share the meaning of their text and differ by noise; the cosine of their mean would rise with each."""
    generator = np.random.default_rng(0)
    texts = generator.normal(size=(200, 64))

    def agreement(windows: int) -> float:
        sounds = [0.4 * text + generator.normal(size=(windows, 64)) for text in texts]
        return alignment(texts, sounds).mean

    one, twelve = agreement(1), agreement(12)
    assert twelve == pytest.approx(one, abs=0.02)
    means = [(0.4 * text + generator.normal(size=(12, 64))).mean(0) for text in texts]
    assert alignment(texts, means).mean > one + 0.3  # the score of averaged windows


@pytest.mark.parametrize("direction", ["generated-from-reference", "reference-from-generated"])
def test_kl_is_that_of_stable_audio_metrics_and_of_audioldm_eval(direction: str) -> None:
    """`F.kl_div((q + 1e-6).log(), p)` is KL(p || q): of the generated logits there, of the references here."""
    reference, generated = (torch.from_numpy(normal(6, 5, seed)) for seed in (0, 1))
    p, q = (generated, reference) if direction == "generated-from-reference" else (reference, generated)
    expected = F.kl_div((q.softmax(1) + 1e-6).log(), p.softmax(1), reduction="sum") / 6
    found = kl_divergences(reference.numpy(), generated.numpy(), direction)  # type: ignore[arg-type]
    assert found.mean() == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(UserError, match="pairs of unlike shape"):
        kl_divergences(reference.numpy(), generated.numpy()[:5])
