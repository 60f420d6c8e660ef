"""The two decoders of audio files: libsndfile, and ffmpeg for formats that libsndfile does not know.

An mp3 decoder seeks by walking through all frames before the position, with two system calls each. A decoder that
stays open remembers the way: a second crop of the same file costs a quarter of the first.
"""

import codecs
import io
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from stable_audio_tools.core.errors import AudioError

FFMPEG_SUFFIXES = frozenset({".m4a", ".aac", ".mp4", ".webm", ".mka", ".mkv", ".mov", ".wma"})
_TIMEOUT_SECONDS = 600
_DURATION = re.compile(rb"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)")


def has_ffmpeg() -> bool:
    """Return whether ffmpeg is on the path."""
    return shutil.which("ffmpeg") is not None


def ffmpeg_header(path: Path) -> tuple[int, int, int]:
    """(frames, sample rate, channels); the number of frames is rounded to the container's clock."""
    done = _run(path, ["-map", "0:a:0", "-t", "0", "-f", "wav", "-"], verbose=True)
    duration = _DURATION.search(done.stderr)
    try:
        with sf.SoundFile(io.BytesIO(done.stdout)) as wave:
            rate, channels = wave.samplerate, wave.channels
    except (sf.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{path}: ffmpeg finds no audio in this file ({error})") from None
    hours, minutes, seconds = map(float, duration.groups()) if duration else (0.0, 0.0, 0.0)
    return round((3600 * hours + 60 * minutes + seconds) * rate), rate, channels


def decode_with_ffmpeg(path: Path, channels: int, start: int, frames: int | None) -> NDArray[np.float32]:
    """Samples [start, start + frames) as `(n, c)`, counted from a whole decode, which makes them exact."""
    span = f"atrim=start_sample={start}" + ("" if frames is None else f":end_sample={start + frames}")
    done = _run(path, ["-map", "0:a:0", "-af", span, "-f", "f32le", "-c:a", "pcm_f32le", "-"])
    return np.frombuffer(done.stdout, dtype="<f4").reshape(-1, channels).astype(np.float32)


def _run(path: Path, arguments: list[str], verbose: bool = False) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            f"{path}: {path.suffix} files need ffmpeg, which is not on the path; install it "
            "(apt install ffmpeg, brew install ffmpeg, conda install ffmpeg) or convert the file to flac"
        )
    level = "info" if verbose else "error"
    # "file:" keeps a name such as "a:b.m4a" from being read as a protocol.
    command = [program, "-nostdin", "-hide_banner", "-v", level, "-i", f"file:{path}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AudioError(f"{path}: ffmpeg failed ({error})") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(f"{path}: ffmpeg cannot decode this file ({lines[-1] if lines else done.returncode})")
    return done


# Elsewhere than on POSIX a file that is open cannot be deleted.
_SLOW_TO_SEEK = frozenset({".mp3"} if os.name == "posix" else ())
_MOST_KEPT_OPEN = 64


class Reader(sf.SoundFile):
    """A SoundFile that never seeks after reading: that costs time and breaks the bit reservoir of mp3."""

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
    """Like `opened`, but the file may be positioned in the middle, where its last user left it.

    A file in use is not in the cache, so threads never share one; nor do processes, because a forked worker would
    share the position with its parent.
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
    """Raise AudioError if the file system reports a reason."""
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


def _is_text(path: Path) -> bool:
    """Return whether a file starts with 512 bytes of text in UTF-8."""
    try:
        with path.open("rb") as file:
            start = codecs.getincrementaldecoder("utf-8")().decode(file.read(512))
    except (OSError, UnicodeDecodeError):
        return False
    return bool(start) and all(letter.isprintable() or letter in "\t\r\n" for letter in start)


def _open(path: Path) -> Reader:
    if path.suffix.lower() == ".mp3" and path.is_file() and _is_text(path):
        raise AudioError(f"{path}: holds text, not audio")  # the mp3 decoder would print its own messages
    return Reader(os.fsencode(path) if os.name == "posix" else str(path))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sf.SoundFileError, RuntimeError, OSError, TypeError, MemoryError) as error:
        check_readable(path)
        if _is_text(path):
            raise AudioError(f"{path}: holds text, not audio") from None
        reason = getattr(error, "error_string", "") or str(error) or type(error).__name__
        raise AudioError(f"{path}: cannot be decoded ({reason.strip().rstrip('.')})") from None
