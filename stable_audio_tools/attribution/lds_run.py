"""What `dtrak_validate.py lds` does: scores and measured outputs from their files, compared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stable_audio_tools.attribution.results import read_scores
from stable_audio_tools.attribution.scoring import DEFAULT_GRID, score_ensemble
from stable_audio_tools.attribution.scoring_run import ScoreSettings, read_members
from stable_audio_tools.attribution.validation import (
    LDS,
    Floats,
    choose_regulariser,
    gather_outputs,
    linear_datamodeling_score,
    read_plan,
)
from stable_audio_tools.config import ConfigError


def compare(folder: str | Path, scores: Sequence[str], f_is_loss: bool = True) -> dict[str, LDS]:
    """The LDS of each matrix of scores."""
    found = {}
    for path in scores:
        read = read_scores(path)
        membership, outputs = observations(folder, read.train_ids, read.query_ids)
        found[path] = linear_datamodeling_score(read.values, membership, outputs, f_is_loss=f_is_loss)
    return found


def tune(
    folder: str | Path,
    train: Sequence[str],
    query: str,
    regularisers: Sequence[float] | None = None,
    f_is_loss: bool = True,
) -> dict[str, LDS]:
    """The LDS of every regulariser; the best one is chosen on one half of the models and judged on the other."""
    values = list(regularisers or DEFAULT_GRID)
    members = read_members(ScoreSettings(train, query))
    grid = score_ensemble(members, values)
    first = members[0]
    membership, outputs = observations(folder, first.train.ids, first.query.ids)
    found = {
        f"lambda {value:g}": linear_datamodeling_score(scores, membership, outputs, f_is_loss=f_is_loss)
        for value, scores in zip(values, grid)
    }
    best, _ = choose_regulariser(grid, values, membership[::2], outputs[::2], f_is_loss)
    judged = linear_datamodeling_score(grid[values.index(best)], membership[1::2], outputs[1::2], f_is_loss=f_is_loss)
    return {**found, f"lambda {best:g}, chosen on half of the models and judged on the others": judged}


def observations(folder: str | Path, train_ids: Sequence[str], query_ids: Sequence[str]) -> tuple[Floats, Floats]:
    """Membership (m, n) in the order of the training items, and outputs (m, q) in that of the queries."""
    plan = read_plan(folder)
    places = {name: place for place, name in enumerate(plan.items)}
    missing = [name for name in train_ids if name not in places]
    if missing:
        raise ConfigError(f"{folder}: the plan does not know {missing[0]} and {len(missing) - 1} more training items")
    paths = [Path(folder) / "outputs" / f"subset_{number:03d}.csv" for number in range(len(plan.subsets))]
    measured = [number for number, path in enumerate(paths) if path.is_file()]
    if len(measured) < 4:
        raise ConfigError(f"{folder}/outputs: {len(measured)} models are measured; the score needs at least 4")
    membership = plan.membership()[measured][:, [places[name] for name in train_ids]]
    return membership, gather_outputs([paths[number] for number in measured], query_ids).astype(np.float64)
