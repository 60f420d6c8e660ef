"""Score files (raw float32 rows, one per query, with `.meta.json`), labels of items, and tables of the best items."""

import csv
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.metadata import PATH_KEYS, read_rows, read_sidecar
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Influence of each training item on each query, (q, n); higher is more."""

    values: NDArray[np.floating]
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    about: JsonObject = field(default_factory=dict)


class Ranked(NamedTuple):
    """A line in the table of a query."""

    query: str
    rank: int  # from 1
    item: str
    score: float


def save_scores(scores: Scores, path: str | Path, meta_path: str | Path | None = None) -> Path:
    """Write scores with their ids, and return the path of the metadata."""
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
    """Read scores written by `dtrak_score.py`."""
    about = load(meta_path or f"{path}.meta.json")
    if "shape" not in about:
        raise ConfigError(f"{path}: its metadata has no shape; pass a file written by dtrak_score.py")
    rows, columns = about["shape"]
    if not Path(path).is_file() or Path(path).stat().st_size != rows * columns * 4:
        raise ConfigError(f"{path}: does not hold {rows} x {columns} float32 values, as recorded in its metadata")
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


# ------------------------------------------------------------------ audio and prompts of items


def source_of(item: str) -> str | None:
    """Return the audio file of an item: the item itself, or the file that latents were encoded from."""
    if Path(item).suffix.lower() in SCANNED_EXTENSIONS:
        return item
    path = _sidecar(item).get("path")
    return path if isinstance(path, str) and path else None


def prompt_of(item: str) -> str | None:
    """Return the prompt or caption in a file beside the item."""
    sidecar = _sidecar(item)
    return next((sidecar[key] for key in ("prompt", "text", "caption") if isinstance(sidecar.get(key), str)), None)


def _sidecar(item: str) -> JsonObject:
    try:
        return read_sidecar(item) if Path(item).name else {}
    except BadItem:
        return {}


# ------------------------------------------------------------------ labels


def read_tags(table: str | Path, column: str, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the labels of each item from all rows that name it or its audio by a path or the end of one."""
    sources = {name: source_of(name) or name for name in ids}
    known = _items_by_ending(sources)
    tags: dict[str, dict[str, None]] = defaultdict(dict)
    for number, row in read_rows(table):
        named = next((str(row[key]) for key in PATH_KEYS if row.get(key)), None)
        if named is None or column not in row:
            lack = f"no column {column!r}" if named else f"none of the columns {', '.join(PATH_KEYS)}"
            raise ConfigError(f"{table}: row {number} has {lack}")
        found = known.get("/".join(Path(named).parts), ())
        different = {sources[name] for name in found}
        if len(different) > 1:
            raise ConfigError(
                f"{table}: row {number} names {named!r}, which matches {len(different)} items; write more of the path"
            )
        for name in found:
            tags[name].update(dict.fromkeys(_labels_in(row[column])))
    return {name: tuple(labels) for name, labels in tags.items() if labels}


def read_labels(table: str | Path, column: str, ids: Sequence[str]) -> dict[str, str]:
    """Read the label of each item, which must be unique."""
    tags = read_tags(table, column, ids)
    several = next((name for name, labels in tags.items() if len(labels) > 1), None)
    if several is not None:
        labels = ", ".join(map(repr, tags[several]))
        raise ConfigError(f"{table}: {several} has several labels ({labels} in column {column!r}); keep one of them")
    return {name: labels[0] for name, labels in tags.items()}


def sum_by_label(scores: Scores, tags: Mapping[str, tuple[str, ...]]) -> Scores:
    """Sum scores by artist, album or tag; an item counts for all its labels."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(scores.train_ids):
        for label in tags.get(name, ()):
            groups[label].append(place)
    if not groups:
        raise ConfigError(
            f"--labels: no row of the table names a training item, such as {scores.train_ids[0]}, or its source "
            "audio; write paths of files or the ends of paths"
        )
    without = sum(name not in tags for name in scores.train_ids)
    if without:
        logger.warning("--labels: %d of %d training items have no label", without, len(scores.train_ids))
    values = np.asarray(scores.values, np.float64)
    summed = np.stack([values[:, places].sum(1) for places in groups.values()], axis=1)
    return Scores(summed, scores.query_ids, tuple(groups), scores.about)


def _items_by_ending(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Map every ending of the path of an item, and of its audio, to the items."""
    known: dict[str, set[str]] = defaultdict(set)
    for item, source in sources.items():
        for name in (item, source):
            parts = Path(name).parts
            for start in range(len(parts)):
                known["/".join(parts[start:])].add(item)
    return known


def _labels_in(cell: object) -> list[str]:
    """Return the labels in a cell, which may be a list in a jsonl."""
    cells = cell if isinstance(cell, list) else [cell]
    return [str(one) for one in cells if one not in (None, "")]


# ------------------------------------------------------------------ tables


def rank_items(scores: Scores, top_k: int) -> Iterator[list[Ranked]]:
    """Yield the items with the highest scores for each query."""
    for query, row in zip(scores.query_ids, np.asarray(scores.values, np.float64)):
        best = np.argsort(-row, kind="stable")[:top_k]
        yield [Ranked(query, rank, scores.train_ids[place], float(row[place])) for rank, place in enumerate(best, 1)]


def write_tables(scores: Scores, folder: str | Path, name: str, top_k: int, of_files: bool = True) -> None:
    """Write `NAME.csv` and `NAME.json` with the top of every query, for files with their audio and prompt."""
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
        for query, lines in zip(_unique_names(scores.query_ids), tops)
    }
    text = json.dumps({"about": dict(scores.about), "queries": queries}, indent=2, ensure_ascii=False)
    write_text(Path(folder) / f"{name}.json", text + "\n")


def _lines(ranked: Sequence[Ranked], of_files: bool) -> list[JsonObject]:
    if not of_files:
        return [entry._asdict() for entry in ranked]
    return [{**entry._asdict(), "source": source_of(entry.item), "prompt": prompt_of(entry.item)} for entry in ranked]


def _unique_names(names: Sequence[str]) -> Iterator[str]:
    """Yield names, with a number after repeated ones."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
