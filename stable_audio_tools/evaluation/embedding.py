"""Folders of audio to vectors: decoded in threads, cached, shared by the processes of a launch."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS, Unreachable, walk
from stable_audio_tools.evaluation.cache import EmbeddingCache, key_of
from stable_audio_tools.evaluation.embedders.base import Embedder, Frames, mean_vector

logger = logging.getLogger(__name__)

_CONVERTED = "convert/"  # where fadtk keeps copies at other rates, beside its folder of embeddings


@dataclass(frozen=True)
class EmbeddedFiles:
    """What became of a list of files: vectors by name, and why others have none."""

    frames: Mapping[str, Frames]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """In the order of `vectors`."""
        return list(self.frames)

    @property
    def all_frames(self) -> Frames:
        """(f, d), file after file"""
        return np.concatenate(list(self.frames.values()))

    @property
    def vectors(self) -> Frames:
        """(files, d): the mean of each file's frames"""
        return np.stack([mean_vector(frames) for frames in self.frames.values()])


def find_audio(folder: str | Path, limit: int | None = None) -> dict[str, Path]:
    """Name relative to the folder -> path, in the order of the names; what cannot be looked into is told."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    unreachable: list[Unreachable] = []
    found = {entry.name: root / entry.name for entry in walk(root, SCANNED_EXTENSIONS, unreachable)}
    converted = [name for name in found if name.startswith(_CONVERTED)] if (root / "embeddings").is_dir() else []
    for name in converted:
        del found[name]
    if converted:
        logger.info("%s: left out %d files in %s, which fadtk made of the others", root, len(converted), _CONVERTED)
    for missed in unreachable:
        logger.warning("%s: left out (%s)", missed.path, missed.reason)
    if not found:
        raise UserError(f"{root}: holds no audio files ({', '.join(SCANNED_EXTENSIONS)})")
    return dict(list(found.items())[:limit])


def read_mono(path: Path, sample_rate: int) -> Tensor:
    """The whole file (n,) at a rate: the mean of its channels."""
    return audio_io.read(path, sample_rate=sample_rate).samples.mean(dim=0)


def embed_share(
    embedder: Embedder,
    files: Mapping[str, Path],
    cache: EmbeddingCache,
    batch_size: int = 8,
    workers: int = 4,
    title: str = "embedding",
) -> int:
    """Embed this process's share of what the cache does not hold -> how many files were embedded."""
    mine = list(files.values())[rank() :: world_size()]
    wanted = [path for path in mine if not _is_held(cache, path)]
    done = 0
    with progress_bar(title, len(wanted)) as show, ThreadPoolExecutor(max(1, workers)) as pool:
        for number, (path, audio) in enumerate(_decoded(pool, wanted, embedder.sample_rate, ahead=2 * max(1, workers))):
            show(number)
            try:
                cache.write(key_of(path), embedder.frames(audio.result(), batch_size))
                done += 1
            except AudioError as error:
                reason = _without_path(str(error), path)
                logger.warning("%s: left out (%s)", path, reason)
                if path.is_file():
                    cache.note(key_of(path), reason)
    return done


def collect(files: Mapping[str, Path], cache: EmbeddingCache) -> EmbeddedFiles | None:
    """What the cache holds of all files; None while another process has yet to embed some."""
    frames: dict[str, Frames] = {}
    failed: dict[str, str] = {}
    for name, path in files.items():
        try:
            key = key_of(path)
        except AudioError as error:
            failed[name] = _without_path(str(error), path)
            continue
        found, reason = cache.read(key), cache.why_not(key)
        if found is not None:
            frames[name] = found
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
    """Embed and collect; None in a process that is done before the others. The last one sees the vectors of all."""
    cache = EmbeddingCache(cache_dir, embedder)
    embed_share(embedder, files, cache, batch_size, workers, title)
    return collect(files, cache)


def _is_held(cache: EmbeddingCache, path: Path) -> bool:
    try:
        return cache.read(key_of(path)) is not None
    except AudioError:
        return False  # told when it is read


def _decoded(
    pool: ThreadPoolExecutor, paths: Sequence[Path], sample_rate: int, ahead: int
) -> Iterator[tuple[Path, "Future[Tensor]"]]:
    """Files in order, decoded ahead of their use, but no more than `ahead` of them."""
    waiting: deque[tuple[Path, Future[Tensor]]] = deque()
    for path in paths:
        waiting.append((path, pool.submit(read_mono, path, sample_rate)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _without_path(sentence: str, path: Path) -> str:
    return sentence.removeprefix(f"{path}: ")
