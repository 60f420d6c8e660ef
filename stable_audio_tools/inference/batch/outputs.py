"""Output files of a batch, with safe names, written atomically, with their settings in the file.

The comment of the audio file holds the settings as JSON. A killed run can therefore continue, processes need no
communication, and a file that was moved still contains its prompt and its seed.
"""

import glob
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.comments import read_comment
from stable_audio_tools.inference.generation.request import FORMATS, Bits
from stable_audio_tools.version import __version__

__all__ = ["FORMATS", "Bits", "OutputFolder", "collisions", "format_problems", "name_problems"]

_LONGEST_NAME = 200  # bytes; file systems end at 255, and the temporary name is longer than the final one
_RATES = {
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
_DRIVE = re.compile(r"[A-Za-z]:")


def format_problems(format: str, bits: int, sample_rate: int) -> Iterator[str]:
    """Yield a sentence for each reason why audio of this rate cannot be written in a format."""
    if format == "flac" and bits == 32:
        yield "bits: flac holds 16 or 24 bits; use wav for 32"
    if sample_rate not in _RATES.get(format, (sample_rate,)):
        yield f"format: {format} has no sample rate of {sample_rate} Hz, the rate of the model; use wav, flac or ogg"


def name_problems(name: str) -> Iterator[str]:
    """Yield a sentence for each reason why a name cannot be a path below the output folder."""
    parts = name.split("/")
    if not name.strip():
        yield "the name is empty"
    elif name.startswith(("/", "~")) or _DRIVE.match(name):
        yield f"{name!r} is an absolute path; give a name below the output folder"
    elif ".." in parts or "." in parts:
        yield f"{name!r} leads out of its folder; remove '.' and '..'"
    elif "" in parts:
        yield f"{name!r} has an empty part; write single slashes between parts"
    elif _FORBIDDEN.search(name):
        yield f"{name!r} holds a backslash or a control character; use '/' between folders and plain characters"
    elif any(len(part.encode()) > _LONGEST_NAME for part in parts):
        yield f"{name[:40]!r}... is longer than {_LONGEST_NAME} bytes in one part; shorten it"


MANIFEST = "manifest.jsonl"  # beside the audio, a line per complete file


def collisions(files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of paths that are equal on some file system, or of which one is a folder of the other."""
    seen: dict[str, str] = {}
    for file in files:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", file).casefold())
        if key in seen:
            yield file, seen[key]
        seen.setdefault(key, file)
    for key, file in seen.items():
        for end, letter in enumerate(key):
            if letter == "/" and key[:end] in seen:
                yield file, seen[key[:end]]


class OutputFolder:
    """The folder of the audio files; nothing is written outside of it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be created as a folder ({error.strerror})") from None
        self._root = self.path.resolve()

    def target(self, file: str) -> Path:
        """Return the path of a file; raise if a link leads out of the folder."""
        path = self.path / file
        if not path.resolve().is_relative_to(self._root):
            raise UserError(f"{path}: a link leads out of {self.path}; remove it, or choose another output folder")
        return path

    def check_place(self, file: str) -> None:
        """Raise if a folder has the name of the file, or a file the name of its folder."""
        path = self.target(file)
        if path.is_dir():
            raise UserError(f"{path}: is a folder, and a file of that name must be written; move the folder")
        blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if blocking is not None:
            raise UserError(f"{blocking}: is a file, and a folder of that name must be created; move the file")

    def settings_of(self, file: str) -> JsonObject | None:
        """Return the settings of a complete file; None if it is missing or broken. Raise if it is not ours."""
        path = self.target(file)
        if not path.is_file():
            return None
        try:
            audio_io.check_end(path, audio_io.info(path))
        except AudioError:
            return None
        try:
            found = json.loads(read_comment(path) or "null")
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path}: already exists and was not written by this command; move it, or pass --overwrite")
        return found

    def write(
        self, file: str, audio: Tensor, sample_rate: int, settings: Mapping[str, Any], bits: Bits = 16
    ) -> JsonObject:
        """Write audio (c, n) with its settings; return its line of the manifest."""
        path = self.target(file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f".{glob.escape(path.stem)}.????????.part{path.suffix}"):
                leftover.unlink(missing_ok=True)  # of a run that was killed
            stored = {**settings, "software": f"stable-audio-tools {__version__}"}
            audio_io.write(path, audio, sample_rate, bits=bits, comment=json.dumps(stored))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
        return self.record(file, stored)

    def write_latents(self, file: str, latents: Tensor) -> None:
        """Write the latents (d, t) of a file as `NAME.npy` beside it."""
        path = self.target(file).with_suffix(".npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                np.save(temporary, latents.float().cpu().numpy())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None

    def has_latents(self, file: str) -> bool:
        return self.target(file).with_suffix(".npy").is_file()

    def record(self, file: str, settings: Mapping[str, Any]) -> JsonObject:
        """Return the line of a file in the manifest."""
        about = audio_io.info(self.path / file)
        return {"file": file, **settings, "sample_rate": about.sample_rate, "seconds_made": round(about.seconds, 4)}

    def records(self, files: Sequence[str]) -> list[JsonObject]:
        """Return the lines of the complete files, whichever process wrote them."""
        found = ((file, self.settings_of(file)) for file in files)
        return [self.record(file, settings) for file, settings in found if settings is not None]

    def summarise(self, files: Sequence[str], write: Callable[[list[JsonObject]], None]) -> list[JsonObject]:
        """Pass the lines of all complete files to `write`, again if more files appeared meanwhile; return the lines.

        Every process calls this at its end: the last one to write has seen the files of all.
        """
        while True:
            present = self._present(files)
            records = self.records(files)
            write(records)
            if self._present(files) == present:
                return records

    def write_manifest(self, files: Sequence[str]) -> None:
        """Write `manifest.jsonl`, one line per complete file."""

        def write(records: list[JsonObject]) -> None:
            text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
            write_text(self.path / MANIFEST, text)

        self.summarise(files, write)

    def _present(self, files: Sequence[str]) -> list[bool]:
        return [(self.path / file).is_file() for file in files]
