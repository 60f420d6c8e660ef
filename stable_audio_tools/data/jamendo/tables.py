"""The tables of MTG-Jamendo as metadata, and prompts from them.

A row of `raw_30s.tsv` is ragged: five columns, then a column per tag. `raw.meta.tsv` beside it has titles, artists,
albums and dates.
"""

import random
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.custom_metadata import ItemInfo
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.prompts import FieldRecipe, write_fields

RAW_TABLE, META_TABLE = "raw_30s.tsv", "raw.meta.tsv"
_RAW_TABLES = (RAW_TABLE, "raw.tsv")
_META_TABLES = (META_TABLE, "audio_metadata.tsv")
_HEADER = ("track_id", "artist_id", "album_id", "path", "duration", "tags")
_CATEGORIES = {"genre": "genre", "mood/theme": "mood", "instrument": "instrument"}
OTHER = "tag"


def is_raw_table(first_line: str) -> bool:
    """Return whether this is the first line of a table of tracks."""
    return tuple(first_line.rstrip("\r\n").lower().split("\t")) == _HEADER


def read_raw_table(path: str | Path) -> Iterator[tuple[int, ItemInfo]]:
    """Yield (line, row); tags are lists under genre, mood, instrument or, for other categories, tag."""
    for number, cells in _lines(path, 5):
        if number == 1 and is_raw_table("\t".join(cells)):
            continue
        row: ItemInfo = dict(zip(_HEADER, cells[:4]))
        try:
            row["duration"] = float(cells[4])
        except ValueError:
            raise ConfigError(f"{path}: line {number}: the duration {cells[4]!r} is not a number") from None
        for tag in cells[5:]:
            category, _, value = tag.rpartition("---")
            if text := " ".join(value.replace("_", " ").split()):
                row.setdefault(_CATEGORIES.get(category.strip().lower(), OTHER), []).append(text)
        yield number, row


def read_meta_table(path: str | Path) -> dict[int, ItemInfo]:
    """Return title, artist, album and year by track number."""
    found = {}
    for _, cells in _lines(path, 8):
        number = track_number(cells[0])
        if number is None:  # the line of column names
            continue
        title, artist, album, date = (text.strip() for text in cells[3:7])
        row = {"title": title, "artist": artist, "album": album, "year": date.split("-")[0]}
        found[number] = {key: value for key, value in row.items() if value}
    return found


def read_joined_table(path: str | Path) -> Iterator[tuple[int, ItemInfo]]:
    """Yield (line, row) of a table of tracks, joined with the table of titles beside it."""
    titles = next((place for name in _META_TABLES if (place := Path(path).parent / name).is_file()), None)
    known = read_meta_table(titles) if titles else {}
    for line, row in read_raw_table(path):
        number = track_number(row["track_id"])
        yield line, {**row, **(known.get(number, {}) if number is not None else {})}


def _lines(path: str | Path, least: int) -> Iterator[tuple[int, list[str]]]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n").split("\t")
                if len(cells) >= least:
                    yield number, cells
                elif line.strip():
                    raise ConfigError(f"{path}: line {number} has {len(cells)} columns, expected at least {least}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a table ({error})") from None


# ------------------------------------------------------------------ from a file to its row


def track_number(name: str) -> int | None:
    """Return the number of a track from its id (`track_0000214`) or file name (`214.mp3`, `214.2min.mp3`)."""
    match = re.fullmatch(r"(?:track_)?0*(\d+)", name.rpartition("/")[2].split(".")[0])
    return int(match[1]) if match else None


def alike_names(name: str) -> list[str]:
    """Return the names under which a track is distributed: as it is, in low quality, and its first two minutes."""
    path = PurePosixPath(name)
    return [name, *(str(path.with_suffix(f".{kind}{path.suffix}")) for kind in ("low", "2min"))]


def find_track(path: str | Path) -> Mapping[str, Any]:
    """Return the row of an audio file, from the tables in the nearest folder above it."""
    place = Path(path).absolute()
    candidates = (folder / name for folder in place.parents for name in _RAW_TABLES)
    tables = next(filter(Path.is_file, candidates), None)
    if tables is None:
        raise ConfigError(f"{path}: no {' or '.join(_RAW_TABLES)} in any folder above it")
    number = track_number(place.name)
    row = _rows(str(tables)).get(number) if number is not None else None
    if row is None:
        raise ConfigError(f"{path}: {tables} has no row for this track")
    return row


@lru_cache(maxsize=4)
def _rows(path: str) -> dict[int, ItemInfo]:
    rows = ((track_number(row["track_id"]), row) for _, row in read_joined_table(path))
    return {number: row for number, row in rows if number is not None}


TRAINING = FieldRecipe()
TAGS_ONLY = FieldRecipe(
    fields=("mood", "genre", "instrument"), keep=1.0, shuffle=False, labels=0.0, lowercase=1.0, uppercase=0.0
)


def prompt_for_track(path: str | Path, recipe: FieldRecipe, rng: random.Random) -> str:
    """Return a prompt for an audio file; raise BadItem for a track without any field of the recipe."""
    prompt = write_fields(find_track(path), recipe, rng)
    if prompt is None:
        raise BadItem("bad metadata", f"{path}: its row has none of {', '.join(recipe.fields)}")
    return prompt


def seeded_prompt(path: str | Path, seed: int) -> str:
    """Return the training prompt that a track always gets for a seed."""
    return prompt_for_track(path, TRAINING, random.Random(seed + (track_number(Path(path).name) or 0)))
