"""Opening audio files with libsndfile: what goes wrong names the file, and the last mp3 files stay open.

To seek in an mp3, a decoder walks through all frames before the place, two system calls each. One that stays open
knows the way: a second crop of the same file costs a quarter of the first.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import soundfile as sf

from stable_audio_tools.core.errors import AudioError

# Elsewhere than on POSIX a file that is open cannot be deleted.
_SLOW_TO_SEEK = frozenset({".mp3"} if os.name == "posix" else ())
_MOST_KEPT_OPEN = 64


class Reader(sf.SoundFile):
    """soundfile seeks after each read of a seekable file, which costs time and, in mp3, the bits carried over."""

    def seekable(self) -> bool:
        return False


class _Idle(NamedTuple):
    version: tuple[int, int]  # time of change, and size
    file: Reader


_idle: dict[tuple[int, str], _Idle] = {}  # the least recently used first


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """Open a file; errors inside the block become an AudioError that names it."""
    with _explained(path), _open(path) as file:
        yield file


@contextmanager
def kept_open(path: Path) -> Iterator[Reader]:
    """Like `opened`, but the file may be somewhere in the middle, where its last user left it.

    A file in use is not among the idle ones, so threads never share one; nor do processes, because a forked worker
    would share the place in the file with its parent.
    """
    if path.suffix.lower() not in _SLOW_TO_SEEK:
        with opened(path) as file:
            yield file
        return
    with _explained(path):
        about = path.stat()
        key, version = (os.getpid(), str(path)), (about.st_mtime_ns, about.st_size)
        found = _idle.pop(key, None)
        file = found.file if found is not None and found.version == version else _open(path)
        try:
            yield file
        except BaseException:
            file.close()
            raise
    _idle[key] = _Idle(version, file)
    for oldest in list(_idle)[:-_MOST_KEPT_OPEN]:
        _idle.pop(oldest, None)  # closes, because nobody else refers to it


def check_readable(path: Path) -> None:
    """Raise AudioError where the file system gives a reason."""
    try:
        about = path.stat()
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(about.st_mode):
        raise AudioError(f"{path}: is a folder, not an audio file")
    if about.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: no permission to read it")


def _open(path: Path) -> Reader:
    return Reader(os.fsencode(path) if os.name == "posix" else str(path))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sf.SoundFileError, RuntimeError, OSError, TypeError, MemoryError) as error:
        check_readable(path)
        reason = getattr(error, "error_string", "") or str(error) or type(error).__name__
        raise AudioError(f"{path}: cannot be decoded ({reason.strip().rstrip('.')})") from None
