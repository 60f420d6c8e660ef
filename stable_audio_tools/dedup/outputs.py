"""What a run writes: the list that training reads, and what tells why."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stable_audio_tools.config import ConfigError
from stable_audio_tools.data.path_lists import PathList, read_path_list
from stable_audio_tools.dedup.copies import Copy, Group, Likeness
from stable_audio_tools.dedup.store import Failure
from stable_audio_tools.dedup.tracks import Track
from stable_audio_tools.system.files import atomic_path, write_text

PathFormat = Literal["qualified", "relative", "absolute"]


def entry_of(track: Track, format: PathFormat) -> str:
    """A file as an entry of a path list."""
    return {"qualified": track.qualified, "relative": track.relpath, "absolute": track.path}[format]


def write_excluded(
    path: Path, excluded: Sequence[Track], tracks: Sequence[Track], format: PathFormat, header: str
) -> None:
    """The list of files to leave out; an entry that would take a kept file with it is refused."""
    lines = [entry_of(track, format) for track in excluded]
    with atomic_path(path) as temporary:
        text = "".join(f"{line}\n" for line in [f"# {header}", *lines])
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        if read_path_list(temporary) != lines:
            odd = next(line for line, read in zip(lines, [*read_path_list(temporary), ""]) if line != read)
            raise ConfigError(f"{odd!r}: no path list can hold such a name; rename the file")
        listed, out = PathList(temporary), set(excluded)
        for track in tracks:
            if track not in out and listed.fits(track.path, track.relpath, track.id):
                raise ConfigError(
                    f"--exclude-path-format {format}: leaving out a copy would leave out {track.path} too, which is "
                    "kept; use 'qualified'"
                )


def write_pairs(path: Path, groups: Sequence[Group]) -> None:
    """A line for each file that is left out."""
    write_lines(path, (_pair(group.kept, copy) for group in groups for copy in group.copies))


def _pair(kept: Track, copy: Copy) -> dict[str, Any]:
    row: dict[str, Any] = {
        "keep_path": kept.path,
        "keep_relpath": kept.relpath,
        "drop_path": copy.dropped.path,
        "drop_relpath": copy.dropped.relpath,
        "similarity": copy.similarity,
    }
    if copy.aligned is not None:
        row.update(aligned=copy.aligned.score, offset_seconds=copy.aligned.offset_seconds)
    if copy.like != kept:
        row["linked_by"] = copy.like.path
    return row


def write_clusters(path: Path, groups: Sequence[Group]) -> None:
    """A line for each group of copies."""
    rows = (
        {"keep": group.kept.qualified, "drop": [copy.dropped.qualified for copy in group.copies]} for group in groups
    )
    write_lines(path, rows)


def write_leaks(path: Path, tracks: Sequence[Track], others: Sequence[Track], likenesses: Sequence[Likeness]) -> None:
    """A line for each recording that two data sets share."""
    rows = []
    for pair in likenesses:
        row: dict[str, Any] = {
            "path": tracks[pair.first].path,
            "against_path": others[pair.second].path,
            "similarity": pair.similarity,
        }
        if pair.aligned is not None:
            row.update(aligned=pair.aligned.score, offset_seconds=pair.aligned.offset_seconds)
        rows.append(row)
    write_lines(path, rows)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """The files that could not be heard."""
    write_json(path, [failure._asdict() for failure in failures])


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
