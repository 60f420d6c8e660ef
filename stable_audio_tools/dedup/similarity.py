"""Similar rows of a matrix: blocked products select candidates, which are decided in float64 on the CPU.

The second step makes the result the same on every device, for every block size and with or without faiss: a fast
product only needs an accuracy of `_MARGIN`.

On the CPU most products are skipped. With an orthonormal P of few columns and the rest r = |a - P P'a| of each row,

    a . b  <=  P'a . P'b + r_a r_b

by Cauchy and Schwarz, so two rows are not similar if the product of their [P'a, r_a] is below the threshold.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.core.packages import available, require

Features = NDArray[np.float32]  # (n, w), rows of length 1
FAISS_FROM = 100_000  # rows; larger searches on the CPU use faiss if it is installed
_MARGIN = 1e-4  # the error of float32 sums of 10,000 such products is below 1e-5
_AT_ONCE = 256  # pairs in float64
_SKETCH_FROM = 4_096  # rows; smaller searches gain little
_SKETCH_WIDTH = 256
_SAMPLE = 512  # rows that P is computed from
_ROUNDING = 1e-5  # of a squared rest, so that the bound holds in float32
_TOO_MANY = 0.01  # share of candidates in a block above which full products are cheaper

Progress = Callable[[float], None]


class SimilarPairs(NamedTuple):
    """Similar rows, ordered by (first, second)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)


def histogram_features(counts: NDArray[np.integer[Any]], per_codebook: bool = True) -> Features:
    """Convert counts (q, e) to a unit vector of relative frequencies, per codebook or over all codebooks."""
    if per_codebook:
        parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    else:
        parts = counts.sum(0) / max(int(counts.sum()), 1)
    vector = parts.ravel().astype(np.float64)
    return (vector / max(float(np.linalg.norm(vector)), 1e-30)).astype(np.float32)


def find_similar(
    features: Features,
    threshold: float,
    *,
    against: Features | None = None,
    block: int = 2048,
    device: torch.device | None = None,
    use_faiss: bool | None = None,
    progress: Progress = lambda done: None,
) -> SimilarPairs:
    """Return the pairs i < j of rows, or (i, row of `against`), with a cosine of at least `threshold`.

    `use_faiss=None` uses faiss on the CPU above `FAISS_FROM` rows, if it is installed. `progress` receives the
    completed share.
    """
    device = device or torch.device("cpu")
    if use_faiss is None:
        use_faiss = device.type == "cpu" and len(features) >= FAISS_FROM and available("faiss")
    search = _search_with_faiss if use_faiss else _search_by_products
    columns = features if against is None else against
    found = search(features, columns, threshold - _MARGIN, block, device, progress)
    pieces = [_exact(features, against, first, second, threshold) for first, second in found]
    first, second, similarity = (np.concatenate(column) for column in zip(*pieces)) if pieces else _NONE
    order = np.lexsort((second, first))
    return SimilarPairs(first[order], second[order], similarity[order])


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float64))
_Candidates = Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _search_by_products(
    rows: Features, columns: Features, least: float, block: int, device: torch.device, progress: Progress
) -> _Candidates:
    """Search block by block; pairs of a matrix with itself are taken from above the diagonal."""
    own = rows is columns
    sketches: tuple[Features, Features] | None = None
    if device.type == "cpu" and len(rows) >= _SKETCH_FROM:
        basis = _basis(rows)
        sketches = _sketch(rows, basis), _sketch(columns, basis)
    starts = [(i, j) for i in range(0, len(rows), block) for j in range(i if own else 0, len(columns), block)]
    for done, (i, j) in enumerate(starts, 1):
        here, there = slice(i, i + block), slice(j, j + block)
        reached = _exceeds(sketches[0][here], sketches[1][there], least, device) if sketches else None
        if reached is None or int(reached.sum()) > _TOO_MANY * reached.numel():
            reached = _exceeds(rows[here], columns[there], least, device)
        if own and i == j:
            reached = reached.triu(1)
        first, second = reached.nonzero(as_tuple=True)
        progress(done / len(starts))
        if len(first):
            yield first.cpu().numpy() + i, second.cpu().numpy() + j


def _exceeds(left: Features, right: Features, least: float, device: torch.device) -> Tensor:
    """Return a mask (rows of left, rows of right) of the products that reach the threshold."""
    return _multiply(_on(device, left), _on(device, right).T) >= least


def _basis(rows: Features) -> NDArray[np.float64]:
    """Return the leading principal directions of a sample of the rows as orthonormal columns."""
    sample = rows[:: -(-len(rows) // _SAMPLE)]
    _, vectors = np.linalg.eigh((sample @ sample.T).astype(np.float64))
    return np.linalg.qr((sample.T @ vectors[:, -_SKETCH_WIDTH:].astype(np.float32)).astype(np.float64))[0]


def _sketch(rows: Features, basis: NDArray[np.float64]) -> Features:
    """Return [P'a, r_a] of each row."""
    projected = rows @ basis.astype(np.float32)
    rest = 1 - np.square(projected, dtype=np.float64).sum(1)
    return np.column_stack([projected, np.sqrt(rest.clip(min=0) + _ROUNDING)]).astype(np.float32)


def _on(device: torch.device, rows: Features) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in full float32: the error of TensorFloat-32 exceeds the margin."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return left @ right
    finally:
        torch.set_float32_matmul_precision(allowed)


def _search_with_faiss(
    rows: Features, columns: Features, least: float, block: int, device: torch.device, progress: Progress
) -> _Candidates:
    """Search by exact inner products on all cores with faiss."""
    faiss = require("faiss", extra="dedup")
    index = faiss.IndexFlatIP(columns.shape[1])
    index.add(columns)
    for start in range(0, len(rows), block):
        limits, _, second = index.range_search(np.ascontiguousarray(rows[start : start + block]), least)
        first = np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64)) + start
        kept = second > first if rows is columns else np.ones(len(first), bool)
        progress(min(1.0, (start + block) / len(rows)))
        if kept.any():
            yield first[kept].astype(np.int64), second[kept].astype(np.int64)


def _exact(
    rows: Features,
    against: Features | None,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the candidates that reach the threshold in float64."""
    columns, found = rows if against is None else against, np.empty(len(first))
    for start in range(0, len(first), _AT_ONCE):
        chosen = slice(start, start + _AT_ONCE)
        products = rows[first[chosen]].astype(np.float64) * columns[second[chosen]]
        found[chosen] = products.sum(1).round(9)
    kept = found >= threshold
    return first[kept], second[kept], found[kept]
