"""Recursive listing of files in a fixed order, safe against link loops, with a record of unreadable folders."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stable_audio_tools.data import decoders
from stable_audio_tools.data.audio_io import LIBSNDFILE_SUFFIXES

AUDIO_EXTENSIONS = (".wav", ".mp3", ".flac", ".ogg", ".aif", ".opus")  # the published default
SCANNED_EXTENSIONS = tuple(sorted(LIBSNDFILE_SUFFIXES | decoders.FFMPEG_SUFFIXES))
_NEVER = ("paxheader", "__macosx")  # folders that archivers leave behind


class ScannedFile(NamedTuple):
    """A file below a root."""

    name: str  # relative to the root, with "/"
    size: int
    mtime_ns: int


class Unreachable(NamedTuple):
    """A file or folder that could not be read."""

    path: str
    reason: str
    is_file: bool


ALREADY_INCLUDED = "a link to a folder that is already included"


def walk(
    root: str | Path, extensions: Iterable[str], unreachable: list[Unreachable] | None = None
) -> Iterator[ScannedFile]:
    """Yield files with one of the extensions, in the order of their path components; hidden ones are skipped.

    Unreadable files and folders are appended to `unreachable`. A folder that links lead to twice is visited once.
    """
    wanted = tuple(f".{text.lower().removeprefix('.')}" for text in extensions)
    missed = [] if unreachable is None else unreachable
    base, visited = str(Path(root)), set[tuple[int, int]]()
    stack: list[tuple[str, os.DirEntry[str] | None]] = [("", None)]
    while stack:
        name, entry = stack.pop()
        path = f"{base}/{name}" if name else base
        if entry is not None and name.lower().endswith(wanted):
            try:
                if entry.is_file():
                    about = entry.stat()
                    yield ScannedFile(name, about.st_size, about.st_mtime_ns)
                    continue
                if not entry.is_dir():
                    about = entry.stat()  # a broken link or a loop of links says so here
                    continue
            except OSError as error:
                missed.append(Unreachable(path, error.strerror or str(error), True))
                continue
        try:
            if entry is not None and not entry.is_dir():
                continue
            about = Path(path).stat()
            if (about.st_dev, about.st_ino) in visited:
                missed.append(Unreachable(path, ALREADY_INCLUDED, False))
                continue
            visited.add((about.st_dev, about.st_ino))
            with os.scandir(path) as entries:
                below = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name, reverse=True)
        except OSError as error:
            missed.append(Unreachable(path, error.strerror or str(error), False))
            continue
        stack += [(f"{name}/{e.name}" if name else e.name, e) for e in below]


def fast_scandir(dir: str, ext: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (folders, files with one of the extensions) below `dir`; hidden files are left out."""
    files = [str(Path(dir, found.name)) for found in walk(dir, ext)]
    folders = [str(Path(parent, name)) for parent, names, _ in os.walk(dir) for name in sorted(names)]
    return folders, files


def get_audio_filenames(
    paths: str | Sequence[str], keywords: Sequence[str] | None = None, exts: Sequence[str] = AUDIO_EXTENSIONS
) -> list[str]:
    """Return audio files below the folders; with `keywords`, those whose name contains one of them."""
    names = []
    for root in [paths] if isinstance(paths, str) else paths:
        for found in walk(root, exts):
            if holds_keyword(found.name, keywords):
                names.append(str(Path(root, found.name)))
    return names


def holds_keyword(name: str, keywords: Sequence[str] | None) -> bool:
    """Return whether the file's own name contains one of the keywords; True if there are none."""
    if keywords is None:
        return True
    base = name.rpartition("/")[2].lower()
    return any(word.lower() in base for word in keywords) and not any(word in base for word in _NEVER)
