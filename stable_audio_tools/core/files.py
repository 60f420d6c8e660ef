"""Atomic writes, and digests of file contents."""

import errno
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from stable_audio_tools.core.errors import UserError

logger = logging.getLogger(__name__)

_NEARLY_FULL = 1 << 16  # bytes; libraries stop writing before the very last block


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it on success and is removed on failure.

    The suffix stays the same, because audio libraries derive the format from it. The data is flushed to disk before the
    rename, so a full disk or a kill leaves the old file intact. Devices, pipes and sockets are refused, because the
    rename would remove them.
    """
    target = Path(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UserError(f"{target}: exists and is not a regular file; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{uuid4().hex[:8]}.part{target.suffix}")
    temporary.touch()
    usual = temporary.stat().st_mode  # some libraries create files that only their owner may read
    temporary.unlink()
    try:
        yield temporary
        if os.name == "posix":
            temporary.chmod(usual)
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)
    except Exception as error:
        if is_disk_full(error, target.parent):
            raise UserError(f"{target}: not written, the disk is full; free some space and run this again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_disk_full(error: Exception, folder: Path) -> bool:
    """Return whether a write failed for lack of space, also where a library raised its own error class."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return shutil.disk_usage(folder).free < _NEARLY_FULL


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raise UserError that names the process which already holds it.

    The system releases the lock when a process ends, however it ends. Without file locks (Windows, some network file
    systems) nothing is locked, and the log says so.
    """
    path = folder / ".in-use"
    with path.open("a+") as file:
        if not _acquire(file, path):
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise UserError(
                f"{folder}: another run writes here ({holder}); wait for it, stop it, or choose another folder"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _acquire(file: TextIO, path: Path) -> bool:
    """Lock an open file; return whether it worked and the file is still the one in the folder."""
    try:
        import fcntl
    except ImportError:
        logger.info("%s: not locked, this system has no file locks", path.parent)
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.info("%s: not locked (%s)", path.parent, error.strerror)
        return True
    return path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, changed: int) -> str:
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def content_digest(path: str | Path) -> str:
    """Return 16 hex digits that identify the content of a file; cached by its size and modification time."""
    about = Path(path).stat()
    return _digest(Path(path), about.st_size, about.st_mtime_ns)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
