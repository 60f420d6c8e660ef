"""Scores on disk (raw float32 rows, one for each query, with `.meta.json`), and the tables that people read."""

import csv
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.config import ConfigError, load, save
from stable_audio_tools.data.metadata import PATH_KEYS, read_rows
from stable_audio_tools.system.files import atomic_path, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """How much each training item made each query: (q, n), more is more."""

    values: NDArray[Any]
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


class Ranked(NamedTuple):
    """A line of the table of a query."""

    query: str
    rank: int  # from 1
    item: str
    score: float


def save_scores(scores: Scores, path: str | Path, meta_path: str | Path | None = None) -> Path:
    """Write scores with their ids -> the path of the meta data."""
    path = Path(path)
    with atomic_path(path) as temporary:
        np.ascontiguousarray(scores.values, np.float32).tofile(temporary)
    for side, ids in (("query", scores.query_ids), ("train", scores.train_ids)):
        write_text(f"{path}.{side}_ids.txt", "".join(f"{name}\n" for name in ids))
    meta = Path(meta_path or f"{path}.meta.json")
    about = {
        "output_score_path": str(path),
        "shape": list(scores.values.shape),
        "train_num_examples": len(scores.train_ids),
        "query_num_examples": len(scores.query_ids),
        "train_ids_path": f"{path}.train_ids.txt",
        "query_ids_path": f"{path}.query_ids.txt",
        **scores.about,
    }
    save(about, meta)
    return meta


def read_scores(path: str | Path, meta_path: str | Path | None = None) -> Scores:
    """Scores that `dtrak_score.py` wrote."""
    about = load(meta_path or f"{path}.meta.json")
    if "shape" not in about:
        raise ConfigError(f"{path}: its meta data tells no shape; is it a file of scores?")
    rows, columns = about["shape"]
    if not Path(path).is_file() or Path(path).stat().st_size != rows * columns * 4:
        raise ConfigError(f"{path}: does not hold {rows} x {columns} float32, as its meta data tells")
    values = np.memmap(path, np.float32, "r", shape=(rows, columns))
    ids = []
    for side in ("query", "train"):
        for place in (f"{path}.{side}_ids.txt", str(about.get(f"{side}_ids_path"))):
            if Path(place).is_file():
                ids.append(tuple(Path(place).read_text(encoding="utf-8").splitlines()))
                break
        else:
            raise ConfigError(f"{path}.{side}_ids.txt: missing; it names the {side} items")
    return Scores(values, ids[0], ids[1], about)


def rank_items(scores: Scores, top_k: int) -> Iterator[Ranked]:
    """The items of the highest scores for each query."""
    for query, row in zip(scores.query_ids, np.asarray(scores.values, np.float64)):
        best = np.argsort(-row, kind="stable")[:top_k]
        for rank, place in enumerate(best, 1):
            yield Ranked(query, rank, scores.train_ids[place], float(row[place]))


def sum_by_label(scores: Scores, labels: Mapping[str, str]) -> Scores:
    """Scores of whole artists, albums or tags: sums over their items; items without a label are left out."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(scores.train_ids):
        if name in labels:
            groups[labels[name]].append(place)
    if not groups:
        raise ConfigError("--labels: no row of the table names a training item")
    without = len(scores.train_ids) - sum(map(len, groups.values()))
    if without:
        logger.warning("--labels: %d of %d training items have no label", without, len(scores.train_ids))
    values = np.asarray(scores.values, np.float64)
    summed = np.stack([values[:, places].sum(1) for places in groups.values()], axis=1)
    return Scores(summed, scores.query_ids, tuple(groups), scores.about)


def read_labels(table: str | Path, column: str, ids: Sequence[str]) -> dict[str, str]:
    """The label of each item, from a table whose rows name the files (whole, or the end of their paths)."""
    known: dict[str, list[str]] = defaultdict(list)
    for name in ids:
        parts = Path(name).parts
        for start in range(len(parts)):
            known["/".join(parts[start:])].append(name)
    labels: dict[str, str] = {}
    for number, row in read_rows(table):
        named = next((str(row[key]) for key in PATH_KEYS if row.get(key)), None)
        if named is None or column not in row:
            wanted = f"no column {column!r}" if named else f"none of the columns {', '.join(PATH_KEYS)}"
            raise ConfigError(f"{table}: row {number} has {wanted}")
        found = known.get("/".join(Path(named).parts), [])
        if len(found) > 1:
            raise ConfigError(
                f"{table}: row {number} names {named!r}, which fits {len(found)} items; give more of the path"
            )
        if found and row[column] not in (None, ""):
            labels[found[0]] = str(row[column])
    return labels


def write_tables(scores: Scores, folder: str | Path, name: str, top_k: int) -> None:
    """`NAME.csv` and `NAME.json` with the top of every query."""
    ranked = list(rank_items(scores, top_k))
    with (
        atomic_path(Path(folder) / f"{name}.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Ranked._fields)
        writer.writerows(ranked)
    queries: dict[str, list[dict[str, Any]]] = {query: [] for query in scores.query_ids}
    for entry in ranked:
        queries[entry.query].append({"rank": entry.rank, "item": entry.item, "score": entry.score})
    text = json.dumps({"about": dict(scores.about), "queries": queries}, indent=2, ensure_ascii=False)
    write_text(Path(folder) / f"{name}.json", text + "\n")
