"""Files of the validation: subset plans, training lists, measured outputs, and the comparison of removals."""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text

Floats = NDArray[np.float64]
_LEAST_SUBSETS = 4


# ------------------------------------------------------------------ subsets


@dataclass(frozen=True)
class Plan:
    """Training items of each subset model."""

    items: tuple[str, ...]
    subsets: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...] = ()  # training seeds of each subset; empty: one model with the seed of train.py

    def model_names(self, name: str) -> list[str]:
        """Return the names of the models that are trained on a list."""
        return [f"{name}_seed_{seed}" for seed in self.seeds] or [name]

    def membership(self) -> Floats:
        """Return a table (m, n), 1 if item n is in subset m."""
        table = np.zeros((len(self.subsets), len(self.items)))
        for row, subset in enumerate(self.subsets):
            table[row, list(subset)] = 1
        return table


def make_plan(
    items: Sequence[str],
    count: int,
    fraction: float = 0.5,
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
    seeds: Sequence[int] = (),
) -> Plan:
    """Draw `count` random subsets of a share of the items; with labels, the same share of each label."""
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--train-seeds: expected different seeds, got {' '.join(map(str, seeds))}")
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
    return Plan(tuple(items), tuple(subsets), tuple(seeds))


def _draw(groups: list[list[int]], size: int, rng: random.Random) -> list[int]:
    """Sample systematically: items are equally likely, and the share of each group is rounded up or down."""
    shuffled = [rng.sample(group, len(group)) for group in rng.sample(groups, len(groups))]
    places = [place for group in shuffled for place in group]
    start = rng.randrange(len(places))
    steps = [(number * size + start) // len(places) for number in range(len(places) + 1)]
    return [place for place, before, after in zip(places, steps, steps[1:]) if after > before]


def save_plan(plan: Plan, folder: str | Path) -> None:
    """Write `plan.json` and, per subset, a list for `train.py --include-paths-file`; a plan may only grow."""
    folder = Path(folder)
    if (folder / "plan.json").is_file():
        old = read_plan(folder)
        grows = plan.subsets[: len(old.subsets)] == old.subsets and plan.seeds[: len(old.seeds)] == old.seeds
        if plan.items != old.items or not grows or bool(plan.seeds) != bool(old.seeds):
            raise ConfigError(
                f"{folder}/plan.json: holds another plan, of {len(old.subsets)} subsets of {len(old.items)} items; "
                f"choose another --folder, or pass its --ids, --fraction, --seed, --labels and no fewer "
                f"--num-subsets and --train-seeds"
            )
    for number, subset in enumerate(plan.subsets):
        _write_list(folder / f"subset_{number:03d}.txt", [plan.items[place] for place in subset])
    stored: JsonObject = {"items": list(plan.items), "subsets": [list(subset) for subset in plan.subsets]}
    save(stored | ({"seeds": list(plan.seeds)} if plan.seeds else {}), folder / "plan.json")


def read_plan(folder: str | Path) -> Plan:
    """Read the plan of a folder."""
    stored = load(Path(folder) / "plan.json")
    if not {"items", "subsets"} <= stored.keys():
        raise ConfigError(
            f"{folder}/plan.json: holds no items and subsets; write it with dtrak_validate.py make-subsets"
        )
    subsets = tuple(tuple(subset) for subset in stored["subsets"])
    return Plan(tuple(stored["items"]), subsets, tuple(stored.get("seeds", ())))


# ------------------------------------------------------------------ the counterfactual check


class Removal(NamedTuple):
    """Rise of the output of a query when items are excluded from training."""

    query: str
    named: float  # without the items with the highest scores
    chance: float  # without as many random items


def compare_removals(folder: str | Path, queries: Sequence[str], whole: str | Path | None = None) -> list[Removal]:
    """Compare the measured outputs of the models of `save_removals`; `whole` names outputs of a model of all items."""
    outputs = Path(folder) / "outputs"
    start_from = Path(whole or outputs / "whole.csv")
    settings = read_settings(outputs), read_settings(start_from.parent)
    if all(settings) and settings[0] != settings[1]:
        raise ConfigError(
            f"--whole {whole}: was measured with other settings than {outputs}; measure both with the same settings"
        )
    before = gather_outputs([start_from], queries)[0]
    removals = []
    for number, (query, start) in enumerate(zip(queries, before)):
        paths = [outputs / f"query_{number:03d}_{kind}.csv" for kind in ("named", "random")]
        named, chance = gather_outputs(paths, [query])[:, 0] - start
        removals.append(Removal(query, float(named), float(chance)))
    return removals


def save_removals(
    scores: NDArray[np.floating],
    train_ids: Sequence[str],
    queries: Sequence[str],
    folder: str | Path,
    top_k: int,
    seed: int = 0,
) -> list[Path]:
    """Write `whole.txt` with all items, and per query two lists, without its best items and without random ones."""
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
            remaining = [name for place, name in enumerate(train_ids) if place not in removed]
            paths.append(folder / f"query_{number:03d}_{kind}.txt")
            _write_list(paths[-1], remaining)
    save({"queries": list(queries)}, folder / "queries.json")
    return paths


def read_queries(folder: str | Path) -> list[str]:
    """Read the queries of the lists of `save_removals`."""
    queries = load(Path(folder) / "queries.json").get("queries")
    if not isinstance(queries, list):
        raise ConfigError(
            f"{folder}/queries.json: holds no list of queries; write it with dtrak_validate.py make-removals"
        )
    return queries


def _write_list(path: Path, items: Sequence[str]) -> None:
    """Write a list for `train.py --include-paths-file`, but never replace another list, on which models may depend."""
    text = "".join(f"{Path(item).absolute()}\n" for item in items)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: already holds another list; choose another --folder")
    write_text(path, text)


# ------------------------------------------------------------------ settings


def keep_settings(path: Path, settings: Mapping[str, object], existing: Sequence[Path]) -> None:
    """Record the settings of the files `existing` beside it, and raise ConfigError if they have other settings."""
    requested, folder = json.loads(json.dumps(settings)), path.parent
    remedy = f"choose another --folder, or delete {folder} to start from scratch"
    if not existing:
        save({"settings": requested}, path)
        return
    if not path.is_file():
        raise ConfigError(f"{folder}: holds {existing[0].name}, but no {path.name} with its settings; {remedy}")
    stored = load(path).get("settings", {})
    different = [key for key in {**requested, **stored} if stored.get(key) != requested.get(key)]
    if different:
        values = ", ".join(
            f"{key} is {stored.get(key, 'missing')} there and {requested.get(key, 'missing')} now" for key in different
        )
        raise ConfigError(f"{folder}: was written with other settings ({values}); {remedy}")


def read_settings(outputs: str | Path) -> JsonObject:
    """Read the settings with which outputs were measured; empty if `measure` did not write them."""
    path = Path(outputs) / "settings.json"
    settings: JsonObject = load(path).get("settings", {}) if path.is_file() else {}
    return settings


def is_loss(folder: str | Path, f_not_loss: bool = False) -> bool:
    """Return whether helpful items lower the outputs of a folder; the flag decides if no settings are recorded."""
    f = read_settings(Path(folder) / "outputs").get("f")
    if f == "loss" and f_not_loss:
        raise ConfigError(f"--f-not-loss: {folder}/outputs were measured with --f loss; leave the flag out")
    return not f_not_loss if f is None else bool(f == "loss")


# ------------------------------------------------------------------ measured outputs


def require_finite_scores(scores: NDArray[np.floating], queries: Sequence[str], source: str) -> None:
    """Raise ConfigError, naming the query, if scores (q, n) are not finite."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(scores)).all(1))
    if len(bad):
        raise ConfigError(
            f"{source}: the scores of {queries[bad[0]]} and {len(bad) - 1} more queries are not all finite; compute "
            f"them again from finite features, or without these queries"
        )


def write_outputs(path: str | Path, queries: Sequence[str], values: Sequence[float]) -> None:
    """Write a CSV with a model's output for each query."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("query", "output"))
        writer.writerows(zip(queries, map(float, values)))


def read_outputs(path: str | Path) -> dict[str, float]:
    """Read the output of a model for each query."""
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
    """Raise ConfigError, naming the query, if outputs are not finite."""
    bad = [query for query, value in outputs.items() if not np.isfinite(value)]
    if bad:
        raise ConfigError(
            f"{source}: the output for {bad[0]} and {len(bad) - 1} more queries is {outputs[bad[0]]:g}; delete the "
            f"files of this model in models/ and outputs/, and train it again or leave it out"
        )


def gather_outputs(paths: Sequence[Path], queries: Sequence[str]) -> Floats:
    """Read outputs (m, q) of the models in the order of the queries, matched by absolute path."""
    places, rows = [Path(query).absolute() for query in queries], []
    for path in paths:
        measured = {Path(query).absolute(): value for query, value in read_outputs(path).items()}
        missing = [query for query, place in zip(queries, places) if place not in measured]
        if missing:
            raise ConfigError(
                f"{path}: holds no output for {missing[0]} and {len(missing) - 1} more queries, but for "
                f"{next(iter(measured), 'none')} and others; measure the queries of the scores"
            )
        rows.append([measured[place] for place in places])
    return np.asarray(rows)
