"""The files of a data set, as deduplication sees them."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.dataset import check_dataset_config
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.index import index_folder
from stable_audio_tools.data.metadata import Table, read_sidecar
from stable_audio_tools.data.scanning import ALREADY_INCLUDED
from stable_audio_tools.data.sources.audio_dir import describe_audio, index_kind

logger = logging.getLogger(__name__)

_CAPTION_KEYS = ("prompt", "text", "caption")


@dataclass(frozen=True, order=True)
class Track:
    """One file; ordered by its dataset and its path there."""

    id: str
    relpath: str
    path: str
    size: int = field(compare=False)
    mtime_ns: int = field(compare=False)
    frames: int = field(compare=False)
    rate: int = field(compare=False)  # 0 where only decoding tells
    fault: str = field(compare=False)  # why it cannot be read; "" when it can
    in_table: bool = field(compare=False)  # does the metadata table of its folder name it?

    @property
    def seconds(self) -> float:
        return self.frames / self.rate if self.rate else 0.0

    @property
    def bit_rate(self) -> float:
        """Bits per second on disk."""
        return 8 * self.size / self.seconds if self.seconds else 0.0

    @property
    def qualified(self) -> str:
        """As path lists name it, whatever other folders hold."""
        return f"{self.id}:{self.relpath}"

    def has_caption(self) -> bool:
        """Does a sidecar or the folder's table describe it?"""
        try:
            info = read_sidecar(self.path)
        except BadItem:
            return self.in_table
        return self.in_table or any(info.get(key) for key in _CAPTION_KEYS)


def tracks_of_config(path: str | Path, extensions: Sequence[str]) -> list[Track]:
    """Every file below the folders of an `audio_dir` config; its path lists are not applied."""
    part = check_dataset_config(load(path))
    if part.type != "audio_dir":
        raise ConfigError(f"{path}: dataset_type: deduplication looks at 'audio_dir', got {part.type!r}")
    entries = [folder.as_config(None) for folder in part.config.datasets]
    return _scan([(entry.id, entry.path, entry.metadata_path) for entry in entries], extensions)


def tracks_of_folders(folders: Sequence[str], extensions: Sequence[str]) -> list[Track]:
    """Every file below the folders, each of which is a dataset by its own name."""
    return _scan([(Path(folder).absolute().name, folder, None) for folder in folders], extensions)


def _scan(folders: Sequence[tuple[str, str, str | None]], extensions: Sequence[str]) -> list[Track]:
    ids = [id for id, _, _ in folders]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise ConfigError(
            f"two folders go by the name {repeated[0]!r}, so lists could not tell their files apart; give each its own "
            '"id" in a dataset config'
        )
    found: list[Track] = []
    for id, folder, metadata in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"dataset {id!r}: path {folder} is not a folder")
        index = index_folder(folder, extensions, describe_audio, index_kind())
        listed = Table(metadata, folder, index.names).listed() if metadata else None
        for row, name in enumerate(index.names):
            found.append(
                Track(
                    id,
                    name,
                    os.path.normpath(Path(index.path(row)).absolute()),
                    int(index.sizes[row]),
                    int(index.mtimes[row]),
                    max(0, int(index.frames[row])),
                    int(index.rates[row]),
                    index.reasons.get(row, ""),
                    listed is not None and bool(listed[row]),
                )
            )
        for path, reason, is_file in index.unreachable:
            if not is_file and reason != ALREADY_INCLUDED:
                logger.warning("%s: this folder is not searched (%s)", path, reason)
        found += [
            Track(id, os.path.relpath(path, folder), path, 0, 0, 0, 0, reason, False)
            for path, reason, is_file in index.unreachable
            if is_file
        ]
    if not found:
        looked = ", ".join(folder for _, folder, _ in folders)
        raise ConfigError(f"no audio file in {looked}; looked for {', '.join(extensions)}")
    return sorted(found)


# ------------------------------------------------------------------ which one to keep

Preference = Callable[[Track], float]

KEEP_RULES: Mapping[str, Preference] = {
    "longest": lambda track: track.seconds,
    "best-rate": lambda track: round(track.bit_rate / 1_000),  # headers of short files count for less than that
    "has-caption": lambda track: float(track.has_caption()),
    "first": lambda track: 0.0,
}


def choose_kept(tracks: Sequence[Track], rules: Sequence[str]) -> Track:
    """The one to keep: best by the first rule, ties broken by the next, and at last by the order of paths."""

    def rank(track: Track) -> tuple[Any, ...]:
        return (*(-round(KEEP_RULES[rule](track), 3) for rule in rules), track)

    return min(tracks, key=rank)
