"""Do the scores mean anything? The linear datamodeling score, and what happens without the items that are named.

LDS (Park et al. 2023): models are trained on random subsets S of the training set. For a query q, the output f of the
model of S is compared with the sum of the scores of the items of S; the score of q is Spearman's correlation over the
subsets. Where f is a loss, items that help lower it, so that the prediction is minus the sum.
"""

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stable_audio_tools.config import ConfigError, load, save
from stable_audio_tools.system.files import atomic_path, write_text

Floats = NDArray[np.float64]
_RESAMPLES = 2000
_LEAST_SUBSETS = 4


# ------------------------------------------------------------------ subsets


@dataclass(frozen=True)
class Plan:
    """Which items each subset model is trained on."""

    items: tuple[str, ...]
    subsets: tuple[tuple[int, ...], ...]

    def membership(self) -> Floats:
        """(m, n): 1 where item n is in subset m."""
        table = np.zeros((len(self.subsets), len(self.items)))
        for row, subset in enumerate(self.subsets):
            table[row, list(subset)] = 1
        return table


def make_plan(
    items: Sequence[str], count: int, fraction: float = 0.5, seed: int = 0, labels: Mapping[str, str] | None = None
) -> Plan:
    """`count` random subsets of that share of the items; of every label the same share, where labels are given."""
    if not 0 < fraction < 1:
        raise ConfigError(f"--fraction: expected more than 0 and less than 1, got {fraction:g}")
    if count < _LEAST_SUBSETS:
        raise ConfigError(f"--num-subsets: expected at least {_LEAST_SUBSETS}, got {count}")
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(items):
        groups.setdefault((labels or {}).get(name, ""), []).append(place)
    subsets = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        chosen = [place for group in groups.values() for place in rng.sample(group, round(len(group) * fraction))]
        if not chosen:
            raise ConfigError(f"--fraction: {fraction:g} of {len(items)} items is none of them")
        subsets.append(tuple(sorted(chosen)))
    return Plan(tuple(items), tuple(subsets))


def save_plan(plan: Plan, folder: str | Path) -> None:
    """`plan.json`, and for every subset the list that `train.py --include-paths-file` takes."""
    folder = Path(folder)
    for number, subset in enumerate(plan.subsets):
        _write_list(folder / f"subset_{number:03d}.txt", [plan.items[place] for place in subset])
    save({"items": list(plan.items), "subsets": [list(subset) for subset in plan.subsets]}, folder / "plan.json")


def read_plan(folder: str | Path) -> Plan:
    """The plan of a folder."""
    stored = load(Path(folder) / "plan.json")
    if not {"items", "subsets"} <= stored.keys():
        raise ConfigError(
            f"{folder}/plan.json: holds no items and subsets; make it with dtrak_validate.py make-subsets"
        )
    return Plan(tuple(stored["items"]), tuple(tuple(subset) for subset in stored["subsets"]))


# ------------------------------------------------------------------ the linear datamodeling score


class LDS(NamedTuple):
    """Mean over queries of Spearman's correlation, with a 95 % interval from resampled queries and subsets."""

    mean: float
    low: float
    high: float
    per_query: Floats  # (q,)
    resampled: Floats  # means; the same queries and subsets for every score of one experiment

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def minus(self, other: "LDS") -> "LDS":
        """How much better than other scores, on the same queries and subsets."""
        return _summary(self.per_query - other.per_query, self.resampled - other.resampled)


def _summary(per_query: Floats, resampled: Floats) -> LDS:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return LDS(float(per_query.mean()), float(low), float(high), per_query, resampled)


def linear_datamodeling_score(
    scores: Any, membership: Floats, outputs: Floats, *, f_is_loss: bool = True, seed: int = 0
) -> LDS:
    """scores (q, n), membership (m, n), outputs (m, q) of the subset models."""
    predicted = membership @ np.asarray(scores, np.float64).T  # (m, q)
    if predicted.shape != outputs.shape:
        raise ConfigError(
            f"{outputs.shape[0]} models and {outputs.shape[1]} queries were measured, but the scores and the plan make "
            f"{predicted.shape[0]} and {predicted.shape[1]}"
        )
    predicted = -predicted if f_is_loss else predicted
    rng = np.random.default_rng(seed)
    means = np.empty(_RESAMPLES)
    models, queries = outputs.shape
    for index in range(_RESAMPLES):
        chosen, asked = rng.integers(models, size=models), rng.integers(queries, size=queries)
        means[index] = _spearman(predicted[chosen][:, asked], outputs[chosen][:, asked]).mean()
    return _summary(_spearman(predicted, outputs), means)


def choose_regulariser(
    grid: Sequence[Any], regularisers: Sequence[float], membership: Floats, outputs: Floats, f_is_loss: bool = True
) -> tuple[float, list[float]]:
    """The regulariser of the best LDS, and the LDS of each."""
    observed = []
    for scores in grid:
        predicted = membership @ np.asarray(scores, np.float64).T * (-1 if f_is_loss else 1)
        observed.append(float(_spearman(predicted, outputs).mean()))
    return regularisers[int(np.argmax(observed))], observed


def _spearman(one: Floats, other: Floats) -> Floats:
    """(m, q) each -> (q,); 0 where either is constant."""
    ranks = [stats.rankdata(side, axis=0) for side in (one, other)]
    centred = [side - side.mean(0) for side in ranks]
    norms = np.sqrt((centred[0] ** 2).sum(0) * (centred[1] ** 2).sum(0))
    product = (centred[0] * centred[1]).sum(0)
    correlation: Floats = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    return correlation


# ------------------------------------------------------------------ the counterfactual check


class Removal(NamedTuple):
    """How much the loss of a query rose when items were left out of training."""

    query: str
    named: float  # without the items of the highest scores
    chance: float  # without as many at random


def compare_removals(folder: str | Path, queries: Sequence[str], whole: Mapping[str, float]) -> list[Removal]:
    """From the measured outputs of the models of `save_removals`, and those of a model of all items."""
    removals = []
    for number, query in enumerate(queries):
        rises = []
        for kind in ("named", "random"):
            found = read_outputs(Path(folder) / "outputs" / f"query_{number:03d}_{kind}.csv")
            rises.append(found[query] - whole[query])
        removals.append(Removal(query, *rises))
    return removals


def save_removals(
    scores: Any, train_ids: Sequence[str], queries: Sequence[str], folder: str | Path, top_k: int, seed: int = 0
) -> list[Path]:
    """Two lists for each query, of what is left without its best items and without as many others."""
    values = np.asarray(scores, np.float64)
    if not 1 <= top_k <= len(train_ids) // 2:
        raise ConfigError(f"--top-k: expected 1 to half of the {len(train_ids)} training items, got {top_k}")
    paths = []
    for number in range(len(queries)):
        best = np.argsort(-values[number], kind="stable")[:top_k].tolist()
        others = sorted(set(range(len(train_ids))) - set(best))
        chance = random.Random(f"{seed}/{number}").sample(others, top_k)
        for kind, removed in (("named", best), ("random", chance)):
            left = [name for place, name in enumerate(train_ids) if place not in removed]
            paths.append(Path(folder) / f"query_{number:03d}_{kind}.txt")
            _write_list(paths[-1], left)
    return paths


def _write_list(path: Path, items: Sequence[str]) -> None:
    """What `train.py --include-paths-file` takes."""
    write_text(path, "".join(f"{Path(item).absolute()}\n" for item in items))


# ------------------------------------------------------------------ measured outputs


def write_outputs(path: str | Path, queries: Sequence[str], values: Sequence[float]) -> None:
    """A CSV of a model's output for each query."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("query", "output"))
        writer.writerows(zip(queries, map(float, values)))


def read_outputs(path: str | Path) -> dict[str, float]:
    """The output of a model for each query."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            return {row["query"]: float(row["output"]) for row in csv.DictReader(stream)}
    except OSError as error:
        raise ConfigError(
            f"{path}: the measured outputs cannot be read ({error.strerror}); measure them first"
        ) from None
    except (KeyError, ValueError):
        raise ConfigError(f"{path}: expected a CSV with the columns query and output") from None


def gather_outputs(paths: Sequence[Path], queries: Sequence[str]) -> Floats:
    """(m, q) outputs of the models in the order of the queries."""
    rows = []
    for path in paths:
        found = read_outputs(path)
        missing = [query for query in queries if query not in found]
        if missing:
            raise ConfigError(f"{path}: holds no output for {missing[0]} and {len(missing) - 1} more queries")
        rows.append([found[query] for query in queries])
    return np.asarray(rows)
