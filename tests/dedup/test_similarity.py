"""SimilarPairs against a plain loop in float64, whatever does the work."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stable_audio_tools.core.packages import available
from stable_audio_tools.dedup import similarity
from stable_audio_tools.dedup.similarity import Features, find_similar, histogram_features


def features(rows: int, width: int = 97, seed: int = 0) -> Features:
    """Rows of length 1, in families of four that are near each other."""
    rng = np.random.default_rng(seed)
    centres = rng.random((rows // 4 + 1, width))
    found = np.repeat(centres, 4, axis=0)[:rows] + 0.12 * rng.random((rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def by_loop(rows: Features, columns: Features, threshold: float, own: bool) -> list[tuple[int, int, float]]:
    exact = rows.astype(np.float64) @ columns.astype(np.float64).T
    return [
        (i, j, round(exact[i, j], 9))
        for i in range(len(rows))
        for j in range(len(columns))
        if exact[i, j] >= threshold and (j > i or not own)
    ]


THRESHOLD = 0.995


@pytest.mark.parametrize("block", [1, 7, 16, 100])
@pytest.mark.parametrize("use_faiss", [False, True])
def test_equal_to_a_loop(block: int, use_faiss: bool) -> None:
    if use_faiss and not available("faiss"):
        pytest.skip("faiss is not installed")
    rows, others = features(53), features(20, seed=0)
    expected = by_loop(rows, rows, THRESHOLD, own=True)
    assert len(expected) > 20
    found = find_similar(rows, THRESHOLD, block=block, use_faiss=use_faiss)
    assert [(i, j) for i, j, _ in zip(*found)] == [(i, j) for i, j, _ in expected]
    np.testing.assert_allclose(found.similarity, [value for _, _, value in expected], atol=2e-9)
    across = find_similar(rows, THRESHOLD, against=others, block=block, use_faiss=use_faiss)
    assert [(i, j) for i, j, _ in zip(*across)] == [(i, j) for i, j, _ in by_loop(rows, others, THRESHOLD, own=False)]


@pytest.mark.parametrize("most", [0.0, 0.01, 1.0])
def test_sketches_spare_products_and_lose_no_pair(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """`most` decides whether blocks with many candidates are multiplied whole."""
    for name, value in (("_SKETCH_FROM", 8), ("_SKETCH_WIDTH", 6), ("_SAMPLE", 16), ("_TOO_MANY", most)):
        monkeypatch.setattr(similarity, name, value)
    rows, others = features(61), features(20, seed=0)
    for threshold in (0.9, THRESHOLD):
        found = find_similar(rows, threshold, block=9, use_faiss=False)
        assert [(i, j) for i, j, _ in zip(*found)] == [(i, j) for i, j, _ in by_loop(rows, rows, threshold, own=True)]
        across = find_similar(rows, threshold, against=others, block=9, use_faiss=False)
        expected = by_loop(rows, others, threshold, own=False)
        assert [(i, j) for i, j, _ in zip(*across)] == [(i, j) for i, j, _ in expected]


def test_the_product_of_sketches_bounds_the_product_of_rows() -> None:
    rows = features(700, width=400)
    sketches = similarity._sketch(rows, similarity._basis(rows))
    assert sketches.shape == (700, similarity._SKETCH_WIDTH + 1)
    assert (sketches @ sketches.T >= rows @ rows.T - 1e-6).all()


def test_bits_do_not_depend_on_blocks_or_on_the_engine() -> None:
    rows = features(40)
    one = find_similar(rows, 0.9, block=3, use_faiss=False)
    for block in (8, 40):
        for other in (find_similar(rows, 0.9, block=block, use_faiss=flag) for flag in {False, available("faiss")}):
            assert all(np.array_equal(a, b) for a, b in zip(one, other))


def test_a_pair_at_the_threshold_itself_counts() -> None:
    """float32 products miss it by a rounding; the exact step does not."""
    rows = features(8)
    value = float(find_similar(rows, 0.9).similarity[0])
    assert value in find_similar(rows, value).similarity
    assert value not in find_similar(rows, value + 1e-9).similarity


def test_nothing_alike_is_no_pair() -> None:
    assert len(find_similar(np.eye(5, dtype=np.float32), 0.5)) == 0
    assert len(find_similar(features(1), 0.5)) == 0


def test_the_precision_of_the_rest_of_the_program_is_left_alone() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        find_similar(features(4), 0.5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_histograms_by_hand() -> None:
    counts = np.array([[3, 1], [0, 2]])
    per_codebook = np.array([0.75, 0.25, 0.0, 1.0])
    whole = np.array([3, 3]) / 6
    np.testing.assert_allclose(histogram_features(counts), per_codebook / np.linalg.norm(per_codebook), rtol=1e-6)
    np.testing.assert_allclose(histogram_features(counts, per_codebook=False), whole / np.linalg.norm(whole), rtol=1e-6)


def test_a_large_search_on_a_device_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """faiss is for the CPU; products on another device keep it busy at any size."""
    devices: list[str] = []

    def count(left: Tensor, right: Tensor) -> Tensor:
        devices.append(left.device.type)
        return torch.zeros(left.shape[0], right.shape[1])

    monkeypatch.setattr(similarity, "FAISS_FROM", 5)
    monkeypatch.setattr(similarity, "available", lambda package: True)
    monkeypatch.setattr(similarity, "_multiply", count)
    find_similar(np.eye(10, dtype=np.float32), 0.9, block=5, device=torch.device("meta"))
    assert devices == ["meta"] * 3
