"""Vectors on disk: one small file per sound, so that a run that was killed goes on and processes can share the work.

An entry is found by the embedder's identity and by the file's path, size and time of change. A sound that could not be
embedded leaves a note instead, which holds for as long as the file stays as it is.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.evaluation.embedders.base import Embedder, Frames


class EmbeddingCache:
    """The vectors that one embedder gave, below `root`."""

    def __init__(self, root: str | Path, embedder: Embedder) -> None:
        self.folder = Path(root) / f"{embedder.tag}-{embedder.fingerprint}"
        about = self.folder / "identity.json"
        if not about.is_file():
            write_text(about, json.dumps(embedder.identity, indent=2) + "\n")

    def read(self, key: str) -> Frames | None:
        """The vectors of an entry; None where there are none, or where the file is broken."""
        try:
            frames: Frames = np.load(self._path(key, ".npy"), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return frames

    def write(self, key: str, frames: Frames) -> None:
        path = self._path(key, ".npy")
        with atomic_path(path) as temporary:
            np.save(temporary, frames, allow_pickle=False)
        self._path(key, ".txt").unlink(missing_ok=True)

    def why_not(self, key: str) -> str | None:
        """Why there are no vectors, where that was found out."""
        path = self._path(key, ".txt")
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def note(self, key: str, reason: str) -> None:
        write_text(self._path(key, ".txt"), reason)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / key[:2] / f"{key}{suffix}"


def key_of(path: Path) -> str:
    """Sixteen bytes that change with a file's path, size or time of change."""
    try:
        about = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror})") from None
    told = f"{path.absolute()} {about.st_size} {about.st_mtime_ns}"
    return hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=16).hexdigest()
