"""Vectors of folders of audio: decoded in threads, cached on disk, shared by the processes of a launch.

The cache has one small file per audio file, so that an interrupted run resumes. The key of an entry is the embedder's
identity and the file's path, size and modification time. A file that cannot be embedded has a note with the reason
instead, which is valid until the file changes.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS, Unreachable, walk
from stable_audio_tools.data.transforms import set_channels
from stable_audio_tools.evaluation.embedders.base import Embedder, Frames, mean_vector

logger = logging.getLogger(__name__)

_CONVERTED = "convert/"  # folder of fadtk's resampled copies, next to its folder of embeddings


class EmbeddingCache:
    """Folder of the vectors of one embedder, below `root`."""

    def __init__(self, root: str | Path, embedder: Embedder) -> None:
        self.folder = Path(root) / f"{embedder.tag}-{embedder.fingerprint}"
        identity = self.folder / "identity.json"
        if not identity.is_file():
            write_text(identity, json.dumps(embedder.identity, indent=2) + "\n")

    def read(self, key: str) -> Frames | None:
        """Read an entry; None if it is missing or damaged."""
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

    def read_note(self, key: str) -> str | None:
        """Read why a file has no vectors; None if there is no note."""
        path = self._path(key, ".txt")
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def write_note(self, key: str, reason: str) -> None:
        write_text(self._path(key, ".txt"), reason)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / key[:2] / f"{key}{suffix}"


def key_of(path: Path) -> str:
    """Return the cache key of a file, from its path, size and modification time."""
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror})") from None
    text = f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class EmbeddedFiles:
    """Vectors by file name, and the files that failed with the reason."""

    frames: Mapping[str, Frames]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """File names in the order of `vectors`."""
        return list(self.frames)

    @property
    def all_frames(self) -> Frames:
        """Frames (f, d) of all files, file after file."""
        return np.concatenate(list(self.frames.values()))

    @property
    def vectors(self) -> Frames:
        """Mean vector of each file, (files, d)."""
        return np.stack([mean_vector(frames) for frames in self.frames.values()])


def find_audio(folder: str | Path, limit: int | None = None) -> dict[str, Path]:
    """Map the names of audio files, relative to the folder and sorted, to their paths."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    unreachable: list[Unreachable] = []
    found = {entry.name: root / entry.name for entry in walk(root, SCANNED_EXTENSIONS, unreachable)}
    converted = [name for name in found if name.startswith(_CONVERTED)] if (root / "embeddings").is_dir() else []
    for name in converted:
        del found[name]
    if converted:
        logger.info("%s: skipped %d files in %s, which are copies by fadtk", root, len(converted), _CONVERTED)
    for missed in unreachable:
        logger.warning("%s: skipped (%s)", missed.path, missed.reason)
    if not found:
        raise UserError(f"{root}: contains no audio files ({', '.join(SCANNED_EXTENSIONS)})")
    return dict(list(found.items())[:limit])


def read_audio(path: Path, sample_rate: int, channels: int = 1) -> Tensor:
    """Read a whole file at a sample rate: the mean of its channels (n,), or (channels, n)."""
    samples = audio_io.read(path, sample_rate=sample_rate).samples
    return samples.mean(dim=0) if channels == 1 else set_channels(samples, channels)


def embed_share(
    embedder: Embedder,
    files: Mapping[str, Path],
    cache: EmbeddingCache,
    batch_size: int = 8,
    workers: int = 4,
    title: str = "embedding",
) -> int:
    """Embed this process's share of the files that are not cached, and return how many files were embedded."""
    share = list(files.values())[rank() :: world_size()]
    missing = [path for path in share if not _is_cached(cache, path)]
    embedded = 0
    with progress_bar(title, len(missing)) as show, ThreadPoolExecutor(max(1, workers)) as pool:
        for number, (path, audio) in enumerate(_decoded(pool, missing, embedder, ahead=2 * max(1, workers))):
            show(number)
            try:
                cache.write(key_of(path), embedder.frames(audio.result(), batch_size))
                embedded += 1
            except AudioError as error:
                reason = str(error).removeprefix(f"{path}: ")
                logger.warning("%s: skipped (%s)", path, reason)
                if path.is_file():
                    cache.write_note(key_of(path), reason)
    return embedded


def collect(files: Mapping[str, Path], cache: EmbeddingCache) -> EmbeddedFiles | None:
    """Read the vectors of all files; None while another process has yet to embed some."""
    frames: dict[str, Frames] = {}
    failed: dict[str, str] = {}
    for name, path in files.items():
        try:
            key = key_of(path)
        except AudioError as error:
            failed[name] = str(error).removeprefix(f"{path}: ")
            continue
        cached, reason = cache.read(key), cache.read_note(key)
        if cached is not None:
            frames[name] = cached
        elif reason is not None:
            failed[name] = reason
        else:
            return None
    return EmbeddedFiles(frames, failed)


def embed_files(
    embedder: Embedder,
    files: Mapping[str, Path],
    cache_dir: str | Path,
    batch_size: int = 8,
    workers: int = 4,
    title: str = "embedding",
) -> EmbeddedFiles | None:
    """Embed files and collect their vectors; None in a process that finishes before the others."""
    cache = EmbeddingCache(cache_dir, embedder)
    embed_share(embedder, files, cache, batch_size, workers, title)
    return collect(files, cache)


def _is_cached(cache: EmbeddingCache, path: Path) -> bool:
    try:
        return cache.read(key_of(path)) is not None
    except AudioError:
        return False  # the error is reported when the file is read


def _decoded(
    pool: ThreadPoolExecutor, paths: Sequence[Path], embedder: Embedder, ahead: int
) -> Iterator[tuple[Path, "Future[Tensor]"]]:
    """Yield files in order; at most `ahead` of them are decoded in advance."""
    waiting: deque[tuple[Path, Future[Tensor]]] = deque()
    for path in paths:
        waiting.append((path, pool.submit(read_audio, path, embedder.sample_rate, embedder.channels)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
