"""Files of the validation: subset plans, training lists, measured outputs, and the comparison of removals."""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text

Floats = NDArray[np.float64]
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
    size = round(len(items) * fraction)
    if not size:
        raise ConfigError(f"--fraction: {fraction:g} of {len(items)} items is none of them")
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(items):
        groups.setdefault((labels or {}).get(name, ""), []).append(place)
    subsets = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        chosen = rng.sample(range(len(items)), size) if labels is None else _draw(list(groups.values()), size, rng)
        subsets.append(tuple(sorted(chosen)))
    return Plan(tuple(items), tuple(subsets))


def _draw(groups: list[list[int]], size: int, rng: random.Random) -> list[int]:
    """Systematic sampling: every item is as likely as any other, and every group's share is rounded up or down."""
    shuffled = [rng.sample(group, len(group)) for group in rng.sample(groups, len(groups))]
    places = [place for group in shuffled for place in group]
    start = rng.randrange(len(places))
    steps = [(number * size + start) // len(places) for number in range(len(places) + 1)]
    return [place for place, before, after in zip(places, steps, steps[1:]) if after > before]


def save_plan(plan: Plan, folder: str | Path) -> None:
    """`plan.json`, and for every subset the list that `train.py --include-paths-file` takes; a plan may only grow."""
    folder = Path(folder)
    if (folder / "plan.json").is_file():
        old = read_plan(folder)
        if plan.items != old.items or plan.subsets[: len(old.subsets)] != old.subsets:
            raise ConfigError(
                f"{folder}/plan.json: holds another plan, of {len(old.subsets)} subsets of {len(old.items)} items; "
                f"choose another --folder, or give its --ids, --fraction, --seed, --labels and no fewer --num-subsets"
            )
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


# ------------------------------------------------------------------ the counterfactual check


class Removal(NamedTuple):
    """How much the loss of a query rose when items were left out of training."""

    query: str
    named: float  # without the items of the highest scores
    chance: float  # without as many at random


def compare_removals(folder: str | Path, queries: Sequence[str], whole: str | Path | None = None) -> list[Removal]:
    """From the measured outputs of the models of `save_removals`; `whole` holds those of another model of all items."""
    outputs = Path(folder) / "outputs"
    start_from = Path(whole or outputs / "whole.csv")
    settings = read_settings(outputs), read_settings(start_from.parent)
    if all(settings) and settings[0] != settings[1]:
        raise ConfigError(f"--whole {whole}: was measured with other settings than {outputs}; measure both alike")
    before = gather_outputs([start_from], queries)[0]
    removals = []
    for number, (query, start) in enumerate(zip(queries, before)):
        paths = [outputs / f"query_{number:03d}_{kind}.csv" for kind in ("named", "random")]
        named, chance = gather_outputs(paths, [query])[:, 0] - start
        removals.append(Removal(query, float(named), float(chance)))
    return removals


def save_removals(
    scores: Any, train_ids: Sequence[str], queries: Sequence[str], folder: str | Path, top_k: int, seed: int = 0
) -> list[Path]:
    """`whole.txt` of all items, and two lists for each query, without its best items and without as many others."""
    values = np.asarray(scores, np.float64)
    require_finite_scores(values, queries, "--scores")
    if not 1 <= top_k <= len(train_ids) // 2:
        raise ConfigError(f"--top-k: expected 1 to half of the {len(train_ids)} training items, got {top_k}")
    folder = Path(folder)
    if (folder / "queries.json").is_file() and read_queries(folder) != list(queries):
        raise ConfigError(f"{folder}/queries.json: names other queries than --scores; choose another --folder")
    paths = [folder / "whole.txt"]
    _write_list(paths[0], train_ids)
    for number in range(len(queries)):
        best = np.argsort(-values[number], kind="stable")[:top_k].tolist()
        others = sorted(set(range(len(train_ids))) - set(best))
        chance = random.Random(f"{seed}/{number}").sample(others, top_k)
        for kind, removed in (("named", best), ("random", chance)):
            left = [name for place, name in enumerate(train_ids) if place not in removed]
            paths.append(folder / f"query_{number:03d}_{kind}.txt")
            _write_list(paths[-1], left)
    save({"queries": list(queries)}, folder / "queries.json")
    return paths


def read_queries(folder: str | Path) -> list[str]:
    """The queries that the lists of `save_removals` are made for."""
    queries = load(Path(folder) / "queries.json").get("queries")
    if not isinstance(queries, list):
        raise ConfigError(
            f"{folder}/queries.json: holds no list of queries; make it with dtrak_validate.py make-removals"
        )
    return queries


def _write_list(path: Path, items: Sequence[str]) -> None:
    """What `train.py --include-paths-file` takes; another list of that name stays, for models may be trained on it."""
    text = "".join(f"{Path(item).absolute()}\n" for item in items)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: holds another list already; choose another --folder")
    write_text(path, text)


# ------------------------------------------------------------------ settings


def keep_settings(path: Path, settings: Mapping[str, Any], made: Sequence[Path]) -> None:
    """Write down what the files `made` beside it are made with, and refuse to add to files of other settings."""
    wanted, where = json.loads(json.dumps(settings)), path.parent
    remedy = f"choose another --folder, or delete {where} to make all of it anew"
    if not made:
        save({"settings": wanted}, path)
        return
    if not path.is_file():
        raise ConfigError(f"{where}: holds {made[0].name}, but no {path.name} that tells its settings; {remedy}")
    stored = load(path).get("settings", {})
    different = [key for key in {**wanted, **stored} if stored.get(key) != wanted.get(key)]
    if different:
        told = ", ".join(
            f"{key} is {stored.get(key, 'missing')} there and {wanted.get(key, 'missing')} here" for key in different
        )
        raise ConfigError(f"{where}: was made with other settings ({told}); {remedy}")


def read_settings(outputs: str | Path) -> dict[str, Any]:
    """What the outputs in a folder were measured with; nothing where `measure` did not write them."""
    path = Path(outputs) / "settings.json"
    found: dict[str, Any] = load(path).get("settings", {}) if path.is_file() else {}
    return found


def is_loss(folder: str | Path, f_not_loss: bool = False) -> bool:
    """Whether the outputs of a folder fall with more of the right items; the flag tells where no settings do."""
    f = read_settings(Path(folder) / "outputs").get("f")
    if f == "loss" and f_not_loss:
        raise ConfigError(f"--f-not-loss: {folder}/outputs were measured with --f loss; leave the flag out")
    return not f_not_loss if f is None else bool(f == "loss")


# ------------------------------------------------------------------ measured outputs


def require_finite_scores(scores: Any, queries: Sequence[str], source: str) -> None:
    """Refuse scores (q, n) that are not numbers, naming the query."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(scores)).all(1))
    if len(bad):
        raise ConfigError(
            f"{source}: the scores of {queries[bad[0]]} and {len(bad) - 1} more queries are not all finite; make them "
            f"again from sound features, or without these queries"
        )


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
            found = {row["query"]: float(row["output"]) for row in csv.DictReader(stream)}
    except OSError as error:
        raise ConfigError(
            f"{path}: the measured outputs cannot be read ({error.strerror}); measure them first"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{path}: expected a CSV with the columns query and output") from None
    require_finite_outputs(found, path)
    return found


def require_finite_outputs(outputs: Mapping[str, float], source: str | Path) -> None:
    """Refuse outputs that are not numbers, naming the query."""
    bad = [query for query, value in outputs.items() if not np.isfinite(value)]
    if bad:
        raise ConfigError(
            f"{source}: the output for {bad[0]} and {len(bad) - 1} more queries is {outputs[bad[0]]:g}; delete what "
            f"models/ and outputs/ hold of this model, and train it again or leave it out"
        )


def gather_outputs(paths: Sequence[Path], queries: Sequence[str]) -> Floats:
    """(m, q) outputs of the models in the order of the queries; relative and absolute paths of a file are the same."""
    wanted, rows = [Path(query).absolute() for query in queries], []
    for path in paths:
        found = {Path(query).absolute(): value for query, value in read_outputs(path).items()}
        missing = [query for query, place in zip(queries, wanted) if place not in found]
        if missing:
            raise ConfigError(
                f"{path}: holds no output for {missing[0]} and {len(missing) - 1} more queries, but for "
                f"{next(iter(found), 'none')} and others; measure the queries that the scores are of"
            )
        rows.append([found[place] for place in wanted])
    return np.asarray(rows)
