"""Comments of audio files, which record how generated audio was generated.

libsndfile stores comments of any length in flac, mp3 (Latin letters only), ogg and opus, but only short ones in aiff
and wav. A wav therefore gets a standard `LIST INFO` chunk after its samples, which players and ffmpeg read.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import soundfile as sf

_LARGEST_COMMENT = 1 << 24


def append_wav_comment(path: str | Path, text: str) -> None:
    """Add a comment to a finished wav file without one."""
    body = text.encode() + b"\0"
    entry = b"INFOICMT" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    with Path(path).open("r+b") as file:
        if file.seek(0, os.SEEK_END) % 2:
            file.write(b"\0")
        file.write(b"LIST" + struct.pack("<I", len(entry)) + entry)
        size = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", size - 8))


def read_comment(path: str | Path) -> str | None:
    """Return the comment of an audio file, None if it has none or cannot be read."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".wav":
            return _wav_comment(path)
        with sf.SoundFile(os.fsencode(path) if os.name == "posix" else str(path)) as file:
            comment: str = file.comment
            return comment or None
    except (OSError, sf.SoundFileError):
        return None


def _wav_comment(path: Path) -> str | None:
    with path.open("rb") as file:
        for name, size in _chunks(file):
            if name == b"LIST" and 4 < size <= _LARGEST_COMMENT:
                found = _find_entry(file.read(size))
                if found is not None:
                    return found
    return None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and size of each chunk, with the file positioned at its content."""
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    while len(head := file.read(8)) == 8:
        start, size = file.tell(), struct.unpack("<I", head[4:])[0]
        yield head[:4], size
        file.seek(start + size + size % 2)


def _find_entry(content: bytes) -> str | None:
    """Return the text of `ICMT` in an INFO list."""
    if content[:4] != b"INFO":
        return None
    at = 4
    while at + 8 <= len(content):
        name, size = content[at : at + 4], struct.unpack("<I", content[at + 4 : at + 8])[0]
        if name == b"ICMT":
            return content[at + 8 : at + 8 + size].rstrip(b"\0").decode(errors="replace")
        at += 8 + size + size % 2
    return None
