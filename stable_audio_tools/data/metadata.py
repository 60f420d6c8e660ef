"""Metadata of a file without code: sidecars, rows of a table that name it, and manifests of generated audio."""

import csv
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config.sentences import show
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.data.custom_metadata import ItemInfo
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.index import PackedStrings
from stable_audio_tools.data.jamendo.tables import alike_names, is_raw_table, read_joined_table

logger = logging.getLogger(__name__)

PATH_KEYS = ("audio_path", "path", "file", "file_name")
_TEXT_KEYS = frozenset({*PATH_KEYS, "prompt", "text", "caption", "id", "title", "artist", "album"})


def read_sidecar(path: str | Path) -> ItemInfo:
    """Return the contents of `name.json` (an object) and `name.txt` (the prompt) beside `name.wav`, else {}."""
    stem = str(Path(path).with_suffix(""))
    info: ItemInfo = {}
    if (text := _text_of(f"{stem}.txt")) is not None:
        info["prompt"] = text.strip()
    if (text := _text_of(f"{stem}.json")) is not None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadItem("bad metadata", f"{stem}.json is not valid JSON: {error}") from None
        if not isinstance(found, dict):
            raise BadItem("bad metadata", f"{stem}.json holds no JSON object, but {type(found).__name__}")
        info.update(found)
    return info


def _text_of(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadItem("bad metadata", f"{path} cannot be read: {error}") from None


class Table:
    """The rows of a metadata file, joined to the files of one folder; a visit draws one of a file's rows."""

    def __init__(self, path: str | Path, root: str, names: PackedStrings) -> None:
        self.path = str(path)
        place = {os.path.normpath(name): index for index, name in enumerate(names)}
        rows, files, missing = [], [], []
        self.of_tracks = _is_track_table(Path(path))
        for number, row in read_rows(path):
            named = _named_file(row, self.path, number)
            alike = alike_names(named) if self.of_tracks else [named]
            places = (c for name in alike for c in _places(name, Path(path).parent, root))
            index = next((place[c] for c in places if c in place), None)
            if index is None:
                missing.append(named)
                continue
            rows.append(json.dumps({key: value for key, value in row.items() if value is not None}, default=str))
            files.append(index)
        order = np.argsort(np.asarray(files, np.int64), kind="stable")
        self.rows = PackedStrings.of(rows[i] for i in order)
        self.starts = np.searchsorted(np.asarray(files, np.int64)[order], np.arange(len(names) + 1))
        self._report(missing, len(names))

    def _report(self, missing: list[str], files: int) -> None:
        if missing:
            level = logging.INFO if self.of_tracks else logging.WARNING  # the tables list all of Jamendo
            logger.log(level, "%s: %d rows match no file in use, such as %r", self.path, len(missing), missing[0])
        bare = files - int(self.listed().sum())
        if bare:
            logger.info("%s: %d of %d files have no row (only_listed leaves them out)", self.path, bare, files)

    def listed(self) -> NDArray[np.bool_]:
        """Return a mask of the files that have a row."""
        return np.diff(self.starts) > 0

    def row(self, file: int, draw: int) -> ItemInfo:
        """Return a row of a file, selected by the number `draw`; {} if it has none."""
        start, stop = int(self.starts[file]), int(self.starts[file + 1])
        if start == stop:
            return {}
        found: ItemInfo = json.loads(self.rows[start + draw % (stop - start)])
        return {key: value for key, value in found.items() if key not in PATH_KEYS}


def _named_file(row: Mapping[str, Any], table: str, number: int) -> str:
    for key in PATH_KEYS:
        if isinstance(row.get(key), str) and row[key]:
            return str(row[key])
    columns = [key for key in row if key]
    if set(PATH_KEYS).intersection(columns):
        problem = f"row {number} names no file; its {' or '.join(key for key in PATH_KEYS if key in columns)} is empty"
    else:
        problem = f"found the columns {', '.join(map(show, columns))}, but none names the files"
        marks = [mark for mark in (";", "\t", "|", ",") if len(columns) == 1 and mark in columns[0]]
        if marks:
            problem += f"; separate columns by {'tabs' if table.endswith('.tsv') else 'commas'}, not by {marks[0]!r}"
    raise ConfigError(f"{table}: {problem}; the path of a file is read from one of {', '.join(PATH_KEYS)}")


def _places(named: str, beside: Path, root: str) -> Iterator[str]:
    """Yield the paths below `root` that a name may mean: relative to the table's folder, then to the root."""
    named = named.replace("\\", "/")
    top = Path(root).absolute()
    for base in (beside.absolute(), top):
        place = os.path.relpath(base / named, top).replace("\\", "/")
        if not place.startswith(".."):
            yield place


# ------------------------------------------------------------------ table files


def read_rows(path: str | Path) -> Iterator[tuple[int, ItemInfo]]:
    """Yield (number, row) of a .jsonl, .json, .csv, .tsv or .parquet file."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from enumerate(_parquet(path), 1)
        return
    if _is_track_table(path):
        yield from read_joined_table(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"metadata_path: no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"metadata_path: {path} cannot be read as text ({error})") from None
    if kind in (".jsonl", ".ndjson"):
        lines = ((n, line) for n, line in enumerate(io.StringIO(text), 1) if line.strip())
        yield from ((number, _object(line, path, number)) for number, line in lines)
    elif kind == ".json":
        yield from enumerate(_listed_objects(text, path), 1)
    elif kind in (".csv", ".tsv"):
        yield from enumerate(_delimited(text, "," if kind == ".csv" else "\t"), 2)
    else:
        raise ConfigError(f"metadata_path: {path} must be .jsonl, .json, .csv, .tsv or .parquet")


def _is_track_table(path: Path) -> bool:
    """Return whether a file is a track table of MTG-Jamendo."""
    if path.suffix.lower() != ".tsv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return is_raw_table(file.readline())


def _object(text: str, path: Path, number: int) -> ItemInfo:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: line {number} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: line {number} holds no JSON object, but {type(found).__name__}")
    return found


def _listed_objects(text: str, path: Path) -> list[ItemInfo]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ConfigError(f"{path}: a .json table is a list of objects, one for each file")
    return found


def _delimited(text: str, delimiter: str) -> list[ItemInfo]:
    """Return rows of a csv or tsv; a column of numbers is converted, unless its name marks it as text."""
    rows: list[ItemInfo] = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    for row in rows:
        row.pop(None, None)  # type: ignore[call-overload]  # cells beyond the header
    for key in rows[0] if rows else ():
        cells = [row[key] for row in rows]
        if key not in _TEXT_KEYS and all(not cell or _number(cell) is not None for cell in cells):
            for row in rows:
                row[key] = _number(row[key]) if row[key] else None
    return rows


def _number(text: str) -> float | int | None:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return None


def _parquet(path: Path) -> list[ItemInfo]:
    parquet = require("pyarrow.parquet", extra="parquet")
    try:
        rows: list[ItemInfo] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise ConfigError(f"metadata_path: {path} cannot be read as parquet ({error})") from None
    return rows


_NAMES = ("manifest.jsonl", "prompt_manifest.json")


def find_conditions(path: str | Path) -> ItemInfo:
    """Return the conditions of a generated file, from the nearest manifest in a folder above it."""
    place = Path(path).absolute()
    for folder in place.parents:
        for name in _NAMES:
            if (folder / name).is_file():
                found = _read(str(folder / name)).get(place.relative_to(folder).as_posix())
                if found is None:
                    raise ConfigError(f"{path}: {folder / name} does not name this file")
                return dict(found)
    raise ConfigError(f"{path}: no {' or '.join(_NAMES)} in any folder above it")


@lru_cache(maxsize=8)
def _read(path: str) -> dict[str, ItemInfo]:
    """Return {file: conditions}, each with a prompt."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        lined = path.endswith(".jsonl")
        items = [json.loads(line) for line in text.splitlines()] if lined else json.loads(text)["items"]
        return {item["file" if lined else "filename"]: _conditions(item, path) for item in items}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a manifest of generated files ({type(error).__name__}: {error})") from None


def _conditions(item: Mapping[str, Any], path: str) -> ItemInfo:
    given = item.get("conditions", item)
    if not isinstance(given.get("prompt"), str) or not given["prompt"].strip():
        raise ConfigError(f"{path}: {item.get('file', item.get('filename'))} has no prompt")
    kept = {key: given[key] for key in ("prompt", "seconds_start", "seconds_total") if given.get(key) is not None}
    return {"seconds_start": 0.0, **kept}
