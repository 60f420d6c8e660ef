"""Audio files of a dataset, and the rules that choose which of several copies to keep."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.dataset import check_dataset_config, load_dataset_config
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.index import index_folder
from stable_audio_tools.data.metadata import Table, read_sidecar
from stable_audio_tools.data.scanning import ALREADY_INCLUDED
from stable_audio_tools.data.sources.audio_dir import describe_audio, index_kind

logger = logging.getLogger(__name__)

_CAPTION_KEYS = ("prompt", "text", "caption")


@dataclass(frozen=True, order=True)
class Track:
    """An audio file; ordered by its dataset and its path inside the dataset."""

    id: str
    relpath: str
    path: str
    size: int = field(compare=False)
    mtime_ns: int = field(compare=False)
    frames: int = field(compare=False)
    rate: int = field(compare=False)  # 0 if unknown before decoding
    fault: str = field(compare=False)  # why it cannot be read; "" if it can
    in_table: bool = field(compare=False)  # is it in the metadata table of its folder?

    @property
    def seconds(self) -> float:
        return self.frames / self.rate if self.rate else 0.0

    @property
    def bit_rate(self) -> float:
        """Return the bits per second on disk."""
        return 8 * self.size / self.seconds if self.seconds else 0.0

    @property
    def qualified(self) -> str:
        """Return the name in path lists, unique among all folders."""
        return f"{self.id}:{self.relpath}"

    def has_caption(self) -> bool:
        """Return whether a sidecar or the folder's table describes the file."""
        try:
            info = read_sidecar(self.path)
        except BadItem:
            return self.in_table
        return self.in_table or any(info.get(key) for key in _CAPTION_KEYS)


def tracks_of_config(path: str | Path, extensions: Sequence[str]) -> list[Track]:
    """List every file of an `audio_dir` config; its path lists are not applied."""
    part = check_dataset_config(load_dataset_config(path))
    if part.type != "audio_dir":
        raise ConfigError(f"{path}: dataset_type: expected 'audio_dir', got {part.type!r}")
    entries = [folder.as_config(None) for folder in part.config.datasets]
    return _scan([(entry.id, entry.path, entry.metadata_path) for entry in entries], extensions)


def tracks_of_folders(folders: Sequence[str], extensions: Sequence[str]) -> list[Track]:
    """List every file of the folders; each folder is a dataset named after it."""
    return _scan([(Path(folder).absolute().name, folder, None) for folder in folders], extensions)


def _scan(folders: Sequence[tuple[str, str, str | None]], extensions: Sequence[str]) -> list[Track]:
    ids = [id for id, _, _ in folders]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise ConfigError(
            f"two folders are named {repeated[0]!r}, so lists cannot distinguish their files; give each a "
            'different "id" in a dataset config'
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
                logger.warning("%s: folder skipped (%s)", path, reason)
        found += [
            Track(id, os.path.relpath(path, folder), path, 0, 0, 0, 0, reason, False)
            for path, reason, is_file in index.unreachable
            if is_file
        ]
    if not found:
        names = ", ".join(folder for _, folder, _ in folders)
        raise ConfigError(f"no audio file in {names} with extension {', '.join(extensions)}")
    return sorted(found)


# ------------------------------------------------------------------ the file to keep

Preference = Callable[[Track], float]

KEEP_RULES: Mapping[str, Preference] = {
    "longest": lambda track: track.seconds,
    "best-rate": lambda track: round(track.bit_rate / 1_000),  # rounded, so that headers of short files do not count
    "has-caption": lambda track: float(track.has_caption()),
    "first": lambda track: 0.0,
}


def choose_kept(tracks: Sequence[Track], rules: Sequence[str]) -> Track:
    """Choose the file to keep by the first rule; ties are broken by the next rules, then by path."""

    def rank(track: Track) -> tuple[float | Track, ...]:
        return (*(-round(KEEP_RULES[rule](track), 3) for rule in rules), track)

    return min(tracks, key=rank)
