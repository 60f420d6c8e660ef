"""Scores on disk (raw float32 rows, one for each query, with `.meta.json`), and the tables that people read."""

import csv
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.metadata import PATH_KEYS, read_rows, read_sidecar
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS

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


# ------------------------------------------------------------------ what items are to a listener


def source_of(item: str) -> str | None:
    """The audio: the file itself, or what latents say that they were made from."""
    if Path(item).suffix.lower() in SCANNED_EXTENSIONS:
        return item
    told = _told_beside(item).get("path")
    return told if isinstance(told, str) and told else None


def prompt_of(item: str) -> str | None:
    """The prompt or caption that a file beside the item tells."""
    told = _told_beside(item)
    return next((told[key] for key in ("prompt", "text", "caption") if isinstance(told.get(key), str)), None)


def _told_beside(item: str) -> dict[str, Any]:
    try:
        return read_sidecar(item) if Path(item).name else {}
    except BadItem:
        return {}


# ------------------------------------------------------------------ labels


def read_tags(table: str | Path, column: str, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The labels of each item: of all rows that name it or its audio, whole or by the end of the path."""
    sources = {name: source_of(name) or name for name in ids}
    known = _items_by_ending(sources)
    tags: dict[str, dict[str, None]] = defaultdict(dict)
    for number, row in read_rows(table):
        named = next((str(row[key]) for key in PATH_KEYS if row.get(key)), None)
        if named is None or column not in row:
            wanted = f"no column {column!r}" if named else f"none of the columns {', '.join(PATH_KEYS)}"
            raise ConfigError(f"{table}: row {number} has {wanted}")
        found = known.get(_joined(named), ())
        different = {sources[name] for name in found}
        if len(different) > 1:
            raise ConfigError(
                f"{table}: row {number} names {named!r}, which fits {len(different)} items; give more of the path"
            )
        for name in found:
            tags[name].update(dict.fromkeys(_labels_in(row[column])))
    return {name: tuple(labels) for name, labels in tags.items() if labels}


def read_labels(table: str | Path, column: str, ids: Sequence[str]) -> dict[str, str]:
    """The one label of each item."""
    tags = read_tags(table, column, ids)
    several = next((name for name, labels in tags.items() if len(labels) > 1), None)
    if several is not None:
        told = ", ".join(map(repr, tags[several]))
        raise ConfigError(f"{table}: {several} has several labels ({told} in column {column!r}); give it one")
    return {name: labels[0] for name, labels in tags.items()}


def sum_by_label(scores: Scores, tags: Mapping[str, tuple[str, ...]]) -> Scores:
    """Scores of whole artists, albums or tags: sums over their items, each of which counts for all its labels."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(scores.train_ids):
        for label in tags.get(name, ()):
            groups[label].append(place)
    if not groups:
        raise ConfigError(
            f"--labels: no row of the table names a training item, such as {scores.train_ids[0]}, or the audio that it "
            "was made from; name files whole or by the end of their paths"
        )
    without = sum(name not in tags for name in scores.train_ids)
    if without:
        logger.warning("--labels: %d of %d training items have no label", without, len(scores.train_ids))
    values = np.asarray(scores.values, np.float64)
    summed = np.stack([values[:, places].sum(1) for places in groups.values()], axis=1)
    return Scores(summed, scores.query_ids, tuple(groups), scores.about)


def _items_by_ending(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Every ending of the path of an item, and of its audio -> the items."""
    known: dict[str, set[str]] = defaultdict(set)
    for item, source in sources.items():
        for name in (item, source):
            parts = Path(name).parts
            for start in range(len(parts)):
                known["/".join(parts[start:])].add(item)
    return known


def _joined(named: str) -> str:
    return "/".join(Path(named).parts)


def _labels_in(cell: Any) -> list[str]:
    """A cell of a jsonl may be a list."""
    cells = cell if isinstance(cell, list) else [cell]
    return [str(one) for one in cells if one not in (None, "")]


# ------------------------------------------------------------------ tables


def rank_items(scores: Scores, top_k: int) -> Iterator[list[Ranked]]:
    """For each query the items of the highest scores."""
    for query, row in zip(scores.query_ids, np.asarray(scores.values, np.float64)):
        best = np.argsort(-row, kind="stable")[:top_k]
        yield [Ranked(query, rank, scores.train_ids[place], float(row[place])) for rank, place in enumerate(best, 1)]


def write_tables(scores: Scores, folder: str | Path, name: str, top_k: int, of_files: bool = True) -> None:
    """`NAME.csv` and `NAME.json` with the top of every query; of files their audio and prompt, too."""
    tops = [_lines(ranked, of_files) for ranked in rank_items(scores, top_k)]
    fields = (*Ranked._fields, *(("source", "prompt") if of_files else ()))
    with (
        atomic_path(Path(folder) / f"{name}.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(line for lines in tops for line in lines)
    queries = {
        query: [{key: value for key, value in line.items() if key != "query"} for line in lines]
        for query, lines in zip(_told_apart(scores.query_ids), tops)
    }
    text = json.dumps({"about": dict(scores.about), "queries": queries}, indent=2, ensure_ascii=False)
    write_text(Path(folder) / f"{name}.json", text + "\n")


def _lines(ranked: Sequence[Ranked], of_files: bool) -> list[dict[str, Any]]:
    if not of_files:
        return [entry._asdict() for entry in ranked]
    return [{**entry._asdict(), "source": source_of(entry.item), "prompt": prompt_of(entry.item)} for entry in ranked]


def _told_apart(names: Sequence[str]) -> Iterator[str]:
    """Names that are there again get a number."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
