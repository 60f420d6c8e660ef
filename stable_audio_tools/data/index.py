"""The headers of a folder's files, read once and cached: a second start compares only sizes and times.

The cache is in `$STABLE_AUDIO_TOOLS_CACHE` or in the user's cache folder, never beside the audio.
"""

import hashlib
import json
import logging
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.core.ranks import is_rank_zero
from stable_audio_tools.data.scanning import ScannedFile, Unreachable, walk

logger = logging.getLogger(__name__)

_VERSION = 1
_WORTH_CACHING = 500  # files
_WORTH_SHOWING = 2_000
_COLUMNS = ("sizes", "mtimes", "frames", "rates", "channels")
_THREADS = 8
_BLOCK = 4_096


class PackedStrings:
    """An immutable list of strings in two arrays, which forked workers share: a million paths, no million objects."""

    def __init__(self, blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "PackedStrings":
        """Pack strings; surrogates from undecodable file names are preserved."""
        blob, ends = bytearray(), []
        for text in strings:
            blob += text.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), np.uint8), np.asarray(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.blob[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class Header(NamedTuple):
    """Length (samples or latent frames), rate (0 for latents) and channels of a file."""

    frames: int
    sample_rate: int
    channels: int


Describe = Callable[[Path], Header]


class FileIndex(NamedTuple):
    """A table with one row per file below `root`, in the order of the scan."""

    root: str
    names: PackedStrings
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    frames: NDArray[np.int64]
    rates: NDArray[np.int32]
    channels: NDArray[np.int16]
    reasons: dict[int, str]  # row -> reason why the file cannot be used
    unreachable: list[Unreachable]

    def path(self, row: int) -> str:
        return f"{self.root}/{self.names[row]}"


def index_folder(root: str | Path, extensions: Sequence[str], describe: Describe, kind: str) -> FileIndex:
    """Scan `root`, and describe each file that is new or changed since it was cached."""
    cache = _cache_file(root, extensions, kind)
    old = _load(cache)
    unreachable: list[Unreachable] = []
    rows = _Rows(old)
    with _Progress(f"reading headers in {root}") as show, ThreadPoolExecutor(_THREADS) as pool:
        scan = walk(root, extensions, unreachable)
        while block := list(islice(scan, _BLOCK)):
            known = [rows.cached(found) for found in block]
            stale = [found for found, row in zip(block, known) if row is None]
            fresh = pool.map(lambda f: _examine(Path(root, f.name), describe), stale)
            for found, row in zip(block, known):
                rows.add(found, next(fresh) if row is None else row)
            show(len(rows.sizes))
    made = rows.finish(str(Path(root)), unreachable)
    changed = rows.changed or (old is not None and made.reasons != old.reasons)
    if changed and len(made.names) >= _WORTH_CACHING:
        _save(cache, made)
    return made


_Row = tuple[Header, str]  # header, and why it cannot be used ("" when it can)


def _examine(path: Path, describe: Describe) -> _Row:
    try:
        return describe(path), ""
    except AudioError as error:
        return Header(-1, 0, 0), str(error).removeprefix(f"{path}: ")


class _Rows:
    """A new index in the making, with the cached rows of unchanged files; both are in the same order."""

    def __init__(self, old: FileIndex | None) -> None:
        self.old, self.next_old = old, 0
        self.names = bytearray()
        self.ends, self.sizes, self.mtimes, self.headers = array("q"), array("q"), array("q"), array("q")
        self.reasons: dict[int, str] = {}
        self.changed = old is None

    def cached(self, found: ScannedFile) -> _Row | None:
        """Return the cached row of this file if the file has not changed."""
        if self.old is None:
            return None
        wanted = found.name.split("/")
        while self.next_old < len(self.old.names):
            row, name = self.next_old, self.old.names[self.next_old]
            if name != found.name and name.split("/") > wanted:
                break
            self.next_old += 1
            if name == found.name:
                same = self.old.sizes[row] == found.size and self.old.mtimes[row] == found.mtime_ns
                # An unreadable file is tried again: the server or the permission may have changed.
                if same and row in self.old.reasons:
                    return None
                if same:
                    return self._old_row(row)
                break
            self.changed = True
        self.changed = True
        return None

    def _old_row(self, row: int) -> _Row:
        old = self.old
        assert old is not None
        return Header(int(old.frames[row]), int(old.rates[row]), int(old.channels[row])), ""

    def add(self, found: ScannedFile, row: _Row) -> None:
        header, reason = row
        self.names += found.name.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.names))
        if reason:
            self.reasons[len(self.sizes)] = reason
        self.sizes.append(found.size)
        self.mtimes.append(found.mtime_ns)
        self.headers.extend(header)

    def finish(self, root: str, unreachable: list[Unreachable]) -> FileIndex:
        names = PackedStrings(np.frombuffer(bytes(self.names), np.uint8), np.asarray(self.ends, np.int64))
        headers = np.asarray(self.headers, np.int64).reshape(-1, 3)
        return FileIndex(
            root,
            names,
            np.asarray(self.sizes, np.int64),
            np.asarray(self.mtimes, np.int64),
            headers[:, 0].copy(),
            headers[:, 1].astype(np.int32),
            headers[:, 2].astype(np.int16),
            self.reasons,
            unreachable,
        )


# ------------------------------------------------------------------ cache


def _cache_file(root: str | Path, extensions: Sequence[str], kind: str) -> Path:
    base = os.environ.get("STABLE_AUDIO_TOOLS_CACHE")
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(base) if base else users / "stable-audio-tools"
    key = json.dumps([_VERSION, os.path.normpath(Path(root).absolute()), sorted(extensions), kind])
    return folder / "index" / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.npz"


def _load(cache: Path) -> FileIndex | None:
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            names = PackedStrings(arrays["blob"], arrays["ends"])
            columns = {key: arrays[key] for key in _COLUMNS}
            reasons = {int(row): text for row, text in json.loads(arrays["reasons"].tobytes()).items()}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logger.info("the header cache %s cannot be read (%s); headers are read again", cache, error)
        return None
    if any(len(column) != len(names) for column in columns.values()):
        return None
    return FileIndex("", names, **columns, reasons=reasons, unreachable=[])


def _save(cache: Path, index: FileIndex) -> None:
    reasons = np.frombuffer(json.dumps(index.reasons).encode(), np.uint8)
    columns = {key: getattr(index, key) for key in _COLUMNS}
    try:
        with atomic_path(cache) as temporary:
            np.savez(temporary, blob=index.names.blob, ends=index.names.ends, reasons=reasons, **columns)
    except OSError as error:
        logger.info("headers are not kept for the next start: %s cannot be written (%s)", cache, error)


class _Progress:
    """A line on the terminal that appears once there are many files."""

    def __init__(self, text: str) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,} files"), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.text, self.started = text, False

    def __enter__(self) -> Callable[[int], None]:
        return self.show

    def show(self, count: int) -> None:
        if not self.started and count >= _WORTH_SHOWING and is_rank_zero():
            self.task = self.bar.add_task(self.text, total=None)
            self.bar.start()
            self.started = True
        if self.started:
            self.bar.update(self.task, completed=count)

    def __exit__(self, *error: object) -> None:
        if self.started:
            self.bar.stop()
