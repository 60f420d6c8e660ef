"""Folders of audio or of latents: the selection of their files, joined with a metadata table."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.faults import Fault
from stable_audio_tools.data.index import Describe, FileIndex, index_folder
from stable_audio_tools.data.inventory import Inventory, digest
from stable_audio_tools.data.metadata import Table
from stable_audio_tools.data.path_lists import PathFilter, read_path_list
from stable_audio_tools.data.scanning import holds_keyword
from stable_audio_tools.data.sources.request import LocalDatasetConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """One entry of `datasets`, scanned."""

    config: LocalDatasetConfig
    index: FileIndex
    table: Table | None


class FileItem(NamedTuple):
    """A file of a folder that is used as an item."""

    folder: Folder
    row: int

    @property
    def path(self) -> str:
        return self.folder.index.path(self.row)

    @property
    def relpath(self) -> str:
        return self.folder.index.names[self.row]


Unsuitable = Callable[[FileItem], Fault | None]
Names = Callable[[FileItem], Iterator[tuple[str, str | None]]]


def own_names(place: FileItem) -> Iterator[tuple[str, str | None]]:
    """Yield (path, path below the root), by which path lists name a file."""
    yield place.path, place.relpath


class Folders:
    """The usable files of several folders, as numbered items."""

    def __init__(
        self,
        configs: Sequence[LocalDatasetConfig],
        extensions: Sequence[str],
        describe: Describe,
        kind: str,
        *,
        keywords: Sequence[str] | None = None,
        paths: PathFilter | None = None,
        unsuitable: Unsuitable | None = None,
        names: Names = own_names,
        file_list: str | None = None,
    ) -> None:
        self._paths, self._unsuitable, self._names = paths or PathFilter(), unsuitable, names
        self._keywords, self._file_list = keywords, file_list
        self.known_faults: list[Fault] = []
        self._removed: Counter[str] = Counter()  # files left out on request, by the key of the dataset config
        self.folders: list[Folder] = []
        rows, groups = [], []
        for number, config in enumerate(configs):
            folder = self._scan(config, extensions, describe, kind)
            self.folders.append(folder)
            kept = self._choose(folder)
            rows.append(kept)
            groups.append(np.full(len(kept), number, np.int64))
        self.rows = np.concatenate(rows or [np.zeros(0, np.int64)]).astype(np.int32)
        self.groups: NDArray[np.int64] = np.concatenate(groups or [np.zeros(0, np.int64)])
        self.weights = np.asarray([config.weight for config in configs], np.float64)
        self._paths.report()
        self._log_filtered()
        self._require_some(extensions)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, item: int) -> FileItem:
        return FileItem(self.folders[self.groups[item]], int(self.rows[item]))

    def inventories(self) -> list[Inventory]:
        """Return the used files of each folder, with names below its root, so that machines may mount it elsewhere."""
        return [self._inventory(folder, self.rows[self.groups == n]) for n, folder in enumerate(self.folders)]

    def _inventory(self, folder: Folder, rows: NDArray[np.int32]) -> Inventory:
        index = folder.index
        names = index.names
        parts = (names.blob.tobytes(), names.ends.tobytes(), rows.tobytes(), index.sizes[rows].tobytes())
        return Inventory(
            folder.config.path,
            len(rows),
            digest(parts),
            lambda: (f"{names[row]} ({index.sizes[row]} bytes)" for row in rows),
        )

    def _scan(self, config: LocalDatasetConfig, extensions: Sequence[str], describe: Describe, kind: str) -> Folder:
        if not Path(config.path).is_dir():
            what = "is a file, not a folder" if Path(config.path).exists() else "does not exist"
            raise ConfigError(f"dataset {config.id!r}: path {config.path} {what}")
        index = index_folder(config.path, extensions, describe, kind)
        for path, reason, is_file in index.unreachable:
            if is_file:
                self.known_faults.append(Fault(path, "unreadable", reason))
            else:
                logger.warning("%s cannot be read: %s", path, reason)
        table = Table(config.metadata_path, config.path, index.names) if config.metadata_path else None
        return Folder(config, index, table)

    def _choose(self, folder: Folder) -> NDArray[np.int64]:
        config, table = folder.config, folder.table
        usable = self._listed(folder)
        if config.only_listed:
            if table is None:
                raise ConfigError(f"dataset {config.id!r}: only_listed needs a metadata_path")
            self._removed["only_listed"] += int((usable & ~table.listed()).sum())
            usable &= table.listed()
        for row in np.flatnonzero(usable):
            place = FileItem(folder, int(row))
            reason = None if holds_keyword(place.relpath, self._keywords) else "keywords"
            if reason is None and self._paths:
                reason = self._paths.reason(self._names(place), config.id)
            if reason is not None:
                self._removed[reason] += 1
            fault = self._fault(place) if reason is None else None
            usable[row] = reason is None and fault is None
            if fault is not None:
                self.known_faults.append(fault)
        return np.flatnonzero(usable)

    def _listed(self, folder: Folder) -> NDArray[np.bool_]:
        """Return a mask of the files that the folder's own list names; all files without such a list."""
        names = folder.index.names
        path = Path(folder.config.path, self._file_list) if self._file_list else None
        if path is None or not path.exists():
            return np.ones(len(names), bool)
        wanted = {os.path.normpath(entry).replace("\\", "/") for entry in read_path_list(path)}
        missing = wanted.difference(names)
        self.known_faults += [Fault(str(path.parent / name), "unreadable", f"named in {path}") for name in missing]
        return np.fromiter((name in wanted for name in names), bool, len(names))

    def _fault(self, place: FileItem) -> Fault | None:
        fault = self._unsuitable(place) if self._unsuitable else None
        if fault is None and place.row in place.folder.index.reasons:
            return Fault(place.path, "unreadable", place.folder.index.reasons[place.row])
        return fault

    def _log_filtered(self) -> None:
        filtered = [fault for fault in self.known_faults if not fault.is_bad]
        if filtered:
            logger.warning("%d files are not used; first: %s", len(filtered), filtered[0])

    def _require_some(self, extensions: Sequence[str]) -> None:
        if len(self.rows):
            return
        looked = ", ".join(folder.config.path for folder in self.folders) or "no folder"
        if self.known_faults:
            counts = Counter(fault.kind for fault in self.known_faults)
            reasons = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            raise AudioError(f"no usable file in {looked}: {reasons}; first: {self.known_faults[0]}")
        raise ConfigError(f"no usable file in {looked}: {_what_is_there(self.folders, extensions, self._removed)}")


def _what_is_there(folders: Sequence[Folder], extensions: Sequence[str], removed: Counter[str]) -> str:
    if total := sum(len(folder.index.names) for folder in folders):
        reasons = ", ".join(f"{count} by {key}" for key, count in removed.most_common() if count)
        return f"found {total} files, and all are left out: {reasons or 'the lists name none of them'}"
    found: Counter[str] = Counter()
    for folder in folders:
        for _, _, names in os.walk(folder.config.path):
            found.update(Path(name).suffix.lower() or "(none)" for name in names)
    there = ", ".join(f"{count} {suffix}" for suffix, count in found.most_common(8)) or "the folders are empty"
    return f"found {there}; looked for {', '.join(extensions)}"
