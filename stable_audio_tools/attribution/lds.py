"""The linear datamodeling score (LDS, Park et al. 2023) of score matrices, and the regulariser that it selects.

Models are trained on random subsets S of the training set. For a query q, the output f of the model of S is compared
with the sum of the scores of the items of S; the LDS of q is Spearman's correlation over the subsets. If f is a loss,
helpful items lower it, so the prediction is minus the sum.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stable_audio_tools.attribution.results import Scores, read_scores
from stable_audio_tools.attribution.scoring import DEFAULT_GRID, ScoreOptions, default_regulariser, score_ensemble
from stable_audio_tools.attribution.scoring_run import read_members
from stable_audio_tools.attribution.settings import FeatureSets
from stable_audio_tools.attribution.validation import (
    Floats,
    gather_outputs,
    read_plan,
    require_finite_scores,
)
from stable_audio_tools.core.config import save
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path

_RESAMPLES = 2000
_BASELINES = ("random", "similarity")


class LDS(NamedTuple):
    """Mean over queries of Spearman's correlation, with a 95 % interval from resampled queries and subsets."""

    mean: float
    low: float
    high: float
    per_query: Floats  # (q,)
    resampled: Floats  # (r,) means; the same queries and subsets for every score of one experiment
    resampled_per_query: Floats  # (r, q) of the same subsets, all queries

    @property
    def intervals(self) -> Floats:
        """95 % intervals of each query under resampled subsets, (q, 2)."""
        return _interval(self.resampled_per_query).T

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def minus(self, other: "LDS") -> "LDS":
        """Return the difference from other scores on the same queries and subsets."""
        return _summary(*(getattr(self, name) - getattr(other, name) for name in LDS._fields[3:]))


def _summary(per_query: Floats, resampled: Floats, resampled_per_query: Floats) -> LDS:
    low, high = _interval(resampled)
    return LDS(float(per_query.mean()), float(low), float(high), per_query, resampled, resampled_per_query)


def _interval(resampled: Floats) -> Floats:
    """Return the 95 % interval of resampled values, (r, ...) -> (2, ...)."""
    return np.quantile(resampled, [0.025, 0.975], axis=0)


def linear_datamodeling_score(
    scores: NDArray[np.floating], membership: Floats, outputs: Floats, *, f_is_loss: bool = True, seed: int = 0
) -> LDS:
    """Compute the LDS of scores (q, n) from membership (m, n) and outputs of the subset models.

    Outputs are (m, q), or (m, s, q) for s training seeds per subset, which are averaged. The interval is over resampled
    queries and subsets, and over resampled seeds of each subset.
    """
    each = outputs if outputs.ndim == 3 else outputs[:, None]
    mean = each.mean(1)
    predicted = _predict(scores, membership, mean, f_is_loss)
    rng = np.random.default_rng(seed)
    models, seeds, queries = each.shape
    means, resampled = np.empty(_RESAMPLES), np.empty((_RESAMPLES, queries))
    for index in range(_RESAMPLES):
        chosen, asked = rng.integers(models, size=models), rng.integers(queries, size=queries)
        drawn = mean[chosen]
        if seeds > 1:
            drawn = each[chosen[:, None], rng.integers(seeds, size=(models, seeds))].mean(1)
        resampled[index] = _spearman(predicted[chosen], drawn)
        means[index] = resampled[index, asked].mean()
    return _summary(_spearman(predicted, mean), means, resampled)


def choose_regulariser(
    grid: Sequence[NDArray[np.floating]],
    regularisers: Sequence[float],
    membership: Floats,
    outputs: Floats,
    f_is_loss: bool = True,
) -> tuple[float, list[float]]:
    """Return the regulariser with the best LDS, and the LDS of each."""
    observed = []
    outputs = outputs.mean(1) if outputs.ndim == 3 else outputs
    for scores in grid:
        predicted = _predict(scores, membership, outputs, f_is_loss)
        observed.append(float(_spearman(predicted, outputs).mean()))
    return regularisers[int(np.argmax(observed))], observed


def _predict(scores: NDArray[np.floating], membership: Floats, outputs: Floats, f_is_loss: bool) -> Floats:
    """Return the outputs (m, q) that the scores predict."""
    with np.errstate(invalid="ignore"):  # infinite scores are named below
        predicted = membership @ np.asarray(scores, np.float64).T * (-1 if f_is_loss else 1)
    if predicted.shape != outputs.shape:
        raise ConfigError(
            f"{outputs.shape[0]} models and {outputs.shape[1]} queries were measured, but the plan and the scores "
            f"have {predicted.shape[0]} and {predicted.shape[1]}"
        )
    for quantity, table in (("output", outputs), ("sum of scores", predicted)):
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            model, query = bad[0]
            raise ConfigError(
                f"the {quantity} of model {model} for query {query} is {table[model, query]:g}; leave it out"
            )
    return predicted


def _spearman(one: Floats, other: Floats) -> Floats:
    """Return Spearman's correlations (q,) of the columns of two (m, q) tables; 0 if either is constant."""
    ranks = [stats.rankdata(side, axis=0) for side in (one, other)]
    centred = [side - side.mean(0) for side in ranks]
    norms = np.sqrt((centred[0] ** 2).sum(0) * (centred[1] ** 2).sum(0))
    product = (centred[0] * centred[1]).sum(0)
    correlation: Floats = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    return correlation


class LDSVerdict(NamedTuple):
    """The LDS of a score matrix, with its queries in order."""

    name: str
    queries: tuple[str, ...]
    value: LDS


def compare(folder: str | Path, paths: Sequence[str], f_is_loss: bool = True) -> list[LDSVerdict]:
    """Return the LDS of each matrix, and its differences from the baselines, or else from the first matrix."""
    read = {path: read_scores(path) for path in paths}
    verdicts = [_judge(folder, path, scores, read[paths[0]], f_is_loss) for path, scores in read.items()]
    baselines = [one for one in verdicts if read[one.name].about.get("method") in _BASELINES] or verdicts[:1]
    differences = [
        LDSVerdict(f"{one.name} less {other.name}", one.queries, one.value.minus(other.value))
        for one in verdicts
        for other in baselines
        if one not in baselines
    ]
    return verdicts + differences


def _judge(folder: str | Path, path: str, scores: Scores, first: Scores, f_is_loss: bool) -> LDSVerdict:
    """Compute the LDS of a matrix, with the queries in the order of the first one."""
    unshared = set(scores.query_ids) ^ set(first.query_ids)
    if unshared:
        raise ConfigError(
            f"{path}: its queries differ from the first of --scores, for example in {min(unshared)}; pass scores of "
            f"the same queries"
        )
    require_finite_scores(scores.values, scores.query_ids, path)
    values = scores.values[[scores.query_ids.index(query) for query in first.query_ids]]
    membership, outputs = observations(folder, scores.train_ids, first.query_ids)
    return LDSVerdict(
        path, first.query_ids, linear_datamodeling_score(values, membership, outputs, f_is_loss=f_is_loss)
    )


def tune(
    folder: str | Path, settings: FeatureSets, regularisers: Sequence[float] | None = None, f_is_loss: bool = True
) -> list[LDSVerdict]:
    """Return the LDS of every regulariser; the best is chosen on half of the models and evaluated on the other half."""
    values = list(regularisers or DEFAULT_GRID)
    wrong = [value for value in values if not 0 < value < math.inf]
    if wrong:
        raise ConfigError(f"--lambda-grid: expected finite numbers above 0, got {wrong[0]:g}")
    members = read_members(settings)
    options = ScoreOptions(settings.lambda_scale, settings.used_dim)
    default = default_regulariser(members[0], options)
    grid = [scores.numpy() for scores in score_ensemble(members, [*values, default], options)]
    default_scores = grid.pop()
    queries = members[0].query.ids
    membership, outputs = observations(folder, members[0].train.ids, queries)

    def judge(name: str, scores: NDArray[np.float64], models: slice) -> LDSVerdict:
        require_finite_scores(scores, queries, settings.query_feature_path)
        found = linear_datamodeling_score(scores, membership[models], outputs[models], f_is_loss=f_is_loss)
        return LDSVerdict(name, queries, found)

    verdicts = [judge(f"lambda {value:g}", scores, slice(None)) for value, scores in zip(values, grid)]
    best, _ = choose_regulariser(grid, values, membership[::2], outputs[::2], f_is_loss)
    name = f"lambda {best:g}, chosen on half of the models and judged on the others"
    of_default = judge(f"lambda {default:.3g}, the default", default_scores, slice(None))
    return [of_default, *verdicts, judge(name, grid[values.index(best)], slice(1, None, 2))]


def save_verdicts(verdicts: Sequence[LDSVerdict], folder: str | Path) -> None:
    """Write `lds.json`, and `lds.csv` with a line for each query of each matrix."""
    summary, rows = {}, []
    for name, queries, value in verdicts:
        lines = [
            (query, float(correlation), *map(float, interval))
            for query, correlation, interval in zip(queries, value.per_query, value.intervals)
        ]
        each = {query: {"lds": correlation, "interval": interval} for query, correlation, *interval in lines}
        summary[name] = {"mean": value.mean, "interval": [value.low, value.high], "queries": each}
        rows += [(name, *line) for line in lines]
    save(summary, Path(folder) / "lds.json")
    with atomic_path(Path(folder) / "lds.csv") as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("scores", "query", "lds", "low", "high"))
        writer.writerows(rows)


def observations(folder: str | Path, train_ids: Sequence[str], query_ids: Sequence[str]) -> tuple[Floats, Floats]:
    """Read membership (m, n) in the order of the training items, and outputs in the order of the queries.

    Outputs are (m, q), or (m, s, q) if the plan has several training seeds; subsets without all of them are left out.
    """
    plan = read_plan(folder)
    places = {name: place for place, name in enumerate(plan.items)}
    missing = [name for name in train_ids if name not in places]
    if missing:
        raise ConfigError(f"{folder}: the plan lacks {missing[0]} and {len(missing) - 1} more training items")
    files = [
        [Path(folder) / "outputs" / f"{name}.csv" for name in plan.model_names(f"subset_{number:03d}")]
        for number in range(len(plan.subsets))
    ]
    measured = [number for number, paths in enumerate(files) if all(path.is_file() for path in paths)]
    if len(measured) < 4:
        raise ConfigError(f"{folder}/outputs: {len(measured)} models are measured; the score needs at least 4")
    membership = plan.membership()[measured][:, [places[name] for name in train_ids]]
    outputs = gather_outputs([path for number in measured for path in files[number]], query_ids).astype(np.float64)
    return membership, outputs if len(plan.seeds) < 2 else outputs.reshape(len(measured), len(plan.seeds), -1)
