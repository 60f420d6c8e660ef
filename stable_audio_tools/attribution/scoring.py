"""Scores of training items for queries: tau(q) = phi(q)' (Phi' Phi + lambda I)^-1 Phi' (Park et al. 2023, TRAK).

Everything is computed in float64, with training features read in blocks. With more items than feature dimensions the
matrix is Phi' Phi, else Phi Phi', by the identity (Phi' Phi + lambda)^-1 Phi' = Phi' (Phi Phi' + lambda)^-1. A relative
regulariser is in units of the mean squared norm of a training feature, and so independent of the scale of gradients.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution.features import Features, require_comparable
from stable_audio_tools.core.errors import ConfigError

# Share of the directions of the training features that the default regulariser leaves in effect.
EFFECTIVE_SHARE = 1 / 6
DEFAULT_GRID = tuple(float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 3))


_RANK_TOLERANCE = 1e-12  # of the largest eigenvalue
_BISECTIONS = 60


class Rows(NamedTuple):
    """Features in float64 on a device, in blocks that can be read repeatedly."""

    features: Features
    dim: int
    device: torch.device = torch.device("cpu")

    def blocks(self) -> Iterator[Tensor]:
        start = 0
        for block in self.features.blocks(self.dim):
            self._require_numbers(block, start)
            start += len(block)
            yield torch.from_numpy(block).to(self.device)

    def stacked(self) -> Tensor:
        """Return all rows, (n, dim)."""
        return torch.cat(list(self.blocks()))

    def _require_numbers(self, block: NDArray[np.float64], start: int) -> None:
        broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(broken):
            raise ConfigError(
                f"{self.features.ids[start + broken[0]]}: its feature in {self.features.source} holds NaN or infinite "
                "numbers; extract the features again, and exclude the item if that does not help"
            )


class Member(NamedTuple):
    """Features of training set and queries from one checkpoint, seed and projection."""

    train: Features
    query: Features

    def rows(self, dim: int | None = None, device: torch.device | None = None) -> tuple[Rows, Rows]:
        """Return training and query rows of the same width."""
        require_comparable(self.train, self.query)
        width, place = self.width(dim), device or torch.device("cpu")
        return Rows(self.train, width, place), Rows(self.query, width, place)

    def width(self, dim: int | None = None) -> int:
        """Return how many numbers of a feature are used: `dim`, or the number recorded in the files."""
        full = self.train.rows.shape[1]
        width = dim if dim is not None else min(int(side.meta.get("used_dim") or full) for side in self)
        if not 1 <= width <= full:
            raise ConfigError(f"--used-dim: expected 1 to {full}, got {width}")
        return width


class RidgeScorer:
    """Ridge regression on the training features, for one or several regularisers."""

    def __init__(self, train: Rows, form: Literal["auto", "primal", "dual"] = "auto") -> None:
        self.train, count = train, len(train.features)
        self.is_primal = form == "primal" or (form == "auto" and train.dim <= count)
        if self.is_primal:
            self.matrix = torch.zeros(train.dim, train.dim, dtype=torch.float64, device=train.device)
            for block in train.blocks():
                self.matrix.addmm_(block.T, block)
        else:
            whole = train.stacked()
            self.matrix = whole @ whole.T
        self.unit = float(self.matrix.diagonal().sum()) / count  # mean squared norm of a feature
        if not self.unit > 0:
            raise _all_zero(train)

    def choose(self) -> float:
        """Return the absolute regulariser at which the effective dimension is `EFFECTIVE_SHARE` of the rank.

        The effective dimension is the trace of the smoother, sum e / (e + lambda) over the eigenvalues e. It is 0 for
        an infinite lambda, where scores are inner products, and the rank at 0, where noise of the smallest directions
        dominates.
        """
        values = torch.linalg.eigvalsh(self.matrix)
        values = values[values > values[-1] * _RANK_TOLERANCE]
        low, high = float(values[0]) * 1e-3, float(values[-1]) * 1e3
        for _ in range(_BISECTIONS):
            middle = (low * high) ** 0.5
            dimension = float((values / (values + middle)).sum())
            low, high = (middle, high) if dimension > EFFECTIVE_SHARE * len(values) else (low, middle)
        return high

    def scores(self, queries: Tensor, regulariser: float) -> Tensor:
        """Score queries (q, dim) to (q, n) by a Cholesky factorisation; `regulariser` is absolute."""
        identity = torch.eye(len(self.matrix), dtype=torch.float64, device=self.matrix.device)
        factor, failed = torch.linalg.cholesky_ex(self.matrix + regulariser * identity)
        if failed:
            raise ConfigError(f"--lambda-reg: {regulariser:g} is too small, the matrix is singular; raise it")
        if self.is_primal:
            return self._products(torch.cholesky_solve(queries.T, factor).T)
        return torch.cholesky_solve(self._products(queries).T, factor).T

    def grid(self, queries: Tensor, regularisers: Sequence[float]) -> list[Tensor]:
        """Return scores (q, n) for each absolute regulariser, by one eigendecomposition."""
        values, vectors = torch.linalg.eigh(self.matrix)
        values = values.clamp(min=0)
        if self.is_primal:
            turned = queries @ vectors
            return [self._products((turned / (values + regulariser)) @ vectors.T) for regulariser in regularisers]
        turned = self._products(queries) @ vectors
        return [(turned / (values + regulariser)) @ vectors.T for regulariser in regularisers]

    def _products(self, queries: Tensor) -> Tensor:
        """Return inner products (q, n) of queries (q, dim) with the training features."""
        return torch.cat([queries @ block.T for block in self.train.blocks()], dim=1)


class ScoreOptions(NamedTuple):
    """Options of scoring."""

    scale: str = "auto"  # of regularisers: relative, absolute, or auto, by the origin of the files
    dim: int | None = None
    device: torch.device = torch.device("cpu")
    queries_at_once: int = 256


def is_relative(member: Member, scale: str) -> bool:
    """Return whether regularisers are relative; for files of the original scripts `auto` is absolute."""
    return not member.train.is_foreign if scale == "auto" else scale == "relative"


def score_member(
    member: Member,
    regularisers: Sequence[float],
    options: ScoreOptions = ScoreOptions(),  # noqa: B008 (immutable)
) -> list[Tensor]:
    """Return scores (q, n) on the CPU for each regulariser."""
    train, query = member.rows(options.dim, options.device)
    scorer = RidgeScorer(train)
    unit = scorer.unit if is_relative(member, options.scale) else 1.0
    absolute = [value * unit for value in regularisers]
    parts = _whole_queries(query).split(options.queries_at_once)
    if len(absolute) == 1:
        return [torch.cat([scorer.scores(part, absolute[0]).cpu() for part in parts])]
    grids = [scorer.grid(part, absolute) for part in parts]
    return [torch.cat([grid[index] for grid in grids]).cpu() for index in range(len(absolute))]


def default_regulariser(
    member: Member,
    options: ScoreOptions = ScoreOptions(),  # noqa: B008
) -> float:
    """Return the regulariser that `RidgeScorer.choose` finds for a member, in the scale of the options."""
    train, _ = member.rows(options.dim, options.device)
    scorer = RidgeScorer(train)
    return scorer.choose() / (scorer.unit if is_relative(member, options.scale) else 1.0)


def score_ensemble(
    members: Sequence[Member],
    regularisers: Sequence[float],
    options: ScoreOptions = ScoreOptions(),  # noqa: B008
) -> list[Tensor]:
    """Return the mean scores over members, in the order of the first one's items."""
    totals = [torch.zeros(()) for _ in regularisers]
    for member in members:
        arrange = _arrangement(member, members[0])
        found = score_member(member, regularisers, options)
        totals = [total + scores[arrange] for total, scores in zip(totals, found)]
    return [total / len(members) for total in totals]


def score_by_products(
    members: Sequence[Member],
    cosine: bool,
    options: ScoreOptions = ScoreOptions(),  # noqa: B008
) -> Tensor:
    """Return inner products (q, n) of gradients, summed over members (TracIn), or the mean of their cosines."""
    total = torch.zeros(())
    for member in members:
        rows, query_rows = member.rows(options.dim, options.device)
        train, query = rows.stacked(), _whole_queries(query_rows)
        if not train.any():
            raise _all_zero(rows)
        if cosine:
            train, query = F.normalize(train, dim=1), F.normalize(query, dim=1)
        total = total + (query @ train.T).cpu()[_arrangement(member, members[0])]
    return total / len(members) if cosine else total


def _whole_queries(query: Rows) -> Tensor:
    """Return queries (q, dim), after checking that none is zero, which would give all items the score 0."""
    whole = query.stacked()
    empty = (whole == 0).all(dim=1).nonzero()
    if len(empty):
        raise ConfigError(
            f"{query.features.ids[int(empty[0])]}: its feature in {query.features.source} is all zero, so no "
            f"item can be ranked for it ({len(empty)} of {len(whole)} queries); extract it again or exclude it"
        )
    return whole


def _all_zero(train: Rows) -> ConfigError:
    return ConfigError(
        f"{train.features.source}: the training features are all zero: the selected parameters do not affect f; "
        "extract the features with other parameters"
    )


def _arrangement(member: Member, first: Member) -> tuple[Tensor, Tensor]:
    """Return the index that puts a member's matrix into the order of the first one."""
    rows = _order_of(member.query.ids, first.query.ids, member.query.source)
    return rows[:, None], _order_of(member.train.ids, first.train.ids, member.train.source)


def _order_of(ids: Sequence[str], wanted: Sequence[str], source: str) -> Tensor:
    """Return the order by position if the names are equal, which allows repeated names, else by name."""
    if tuple(ids) == tuple(wanted):
        return torch.arange(len(ids))
    if len(ids) != len(wanted) or set(ids) != set(wanted):
        some = next(iter(set(wanted) ^ set(ids)), wanted[0])
        raise ConfigError(f"{source}: differs from the first member of the ensemble in items such as {some}")
    places = {name: place for place, name in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise ConfigError(
            f"{source}: names {twice} more than once, in another order than the first member of the ensemble, so its "
            "rows are ambiguous; extract both with each item once, or in the same order"
        )
    return torch.tensor([places[name] for name in wanted])
