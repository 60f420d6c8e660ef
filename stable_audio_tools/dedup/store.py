"""Features of each file on disk, so that a resumed run or another threshold does not analyse a file again.

The key of an entry is the file's path, size and modification time, the codec and the number of seconds analysed.
"""

import logging
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.data import audio_io
from stable_audio_tools.dedup.codecs import Codec, Sound
from stable_audio_tools.dedup.similarity import Features, Progress, histogram_features
from stable_audio_tools.dedup.spectrum import Frames
from stable_audio_tools.dedup.tracks import Track

logger = logging.getLogger(__name__)

_VERSION = 1
_FRAMES_IN_MEMORY = 4_096  # recordings, 50 kB each for two minutes


class Failure(NamedTuple):
    """A file that could not be analysed."""

    path: str
    error_type: str
    error: str


class FeatureStore:
    """A folder with a small file of counts and frames per audio file."""

    def __init__(self, folder: str | Path, codec: Codec, seconds: float) -> None:
        self.folder, self.codec, self.seconds = Path(folder), codec, max(0.0, seconds)
        self.frames = lru_cache(_FRAMES_IN_MEMORY)(self._frames)

    def place(self, track: Track) -> Path:
        """Return the path of the entry of a file."""
        about = f"{_VERSION}\0{track.path}\0{track.size}\0{track.mtime_ns}\0{self.codec.identity}\0{self.seconds}"
        key = sha256(about.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / key[:2] / f"{key[2:26]}.npz"

    def add(self, track: Track, sound: Sound) -> None:
        """Write the entry of a file."""
        counts = self.codec.count(sound).numpy().astype(np.uint32)
        if not counts.any():
            raise AudioError(f"{track.path}: silent, or too short for a single code")
        with atomic_path(self.place(track)) as temporary:
            np.savez_compressed(temporary, counts=counts, **sound.frames._asdict())

    def features(self, tracks: Sequence[Track], per_codebook: bool) -> Features:
        """Return one feature row per file."""
        width = self.codec.codebook_size * (self.codec.num_codebooks if per_codebook else 1)
        rows = np.empty((len(tracks), width), np.float32)
        for row, track in zip(rows, tracks):
            with np.load(self.place(track)) as entry:
                row[:] = histogram_features(entry["counts"], per_codebook)
        return rows

    def _frames(self, track: Track) -> Frames:
        with np.load(self.place(track)) as entry:
            return Frames(*(entry[name] for name in Frames._fields))

    def has_entry(self, track: Track) -> bool:
        """Return whether a readable entry exists."""
        try:
            with np.load(self.place(track)) as entry:
                return set(entry.files) >= {"counts", *Frames._fields}
        except FileNotFoundError:
            return False
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s); the audio file is analysed again", self.place(track), error)
            return False


def analyse_all(store: FeatureStore, tracks: Sequence[Track], workers: int, progress: Progress) -> list[Failure]:
    """Analyse the files without an entry and return those that failed; `progress` receives the completed share."""
    failures = [Failure(track.path, "AudioError", track.fault) for track in tracks if track.fault]
    missing = [track for track in tracks if not track.fault and not store.has_entry(track)]
    if len(missing) < len(tracks) - len(failures):
        logger.info("%d of %d files were analysed before", len(tracks) - len(failures) - len(missing), len(tracks))
    with ThreadPoolExecutor(workers) as pool:
        for done, (track, sound) in enumerate(_decoded(pool, store, missing, 2 * workers), 1):
            try:
                if isinstance(sound, Exception):
                    raise sound
                store.add(track, sound)
            except AudioError as error:
                failures.append(Failure(track.path, type(error).__name__, str(error).removeprefix(f"{track.path}: ")))
            progress(done / len(missing))
    return failures


def _decoded(
    pool: ThreadPoolExecutor, store: FeatureStore, tracks: Sequence[Track], most: int
) -> Iterator[tuple[Track, Sound | AudioError]]:
    """Yield files in order; up to `most` are decoded ahead."""
    waiting = iter(tracks)
    running = [(track, pool.submit(_read, track, store.seconds)) for track in islice(waiting, most)]
    while running:
        track, future = running.pop(0)
        yield track, future.result()
        running += [(later, pool.submit(_read, later, store.seconds)) for later in islice(waiting, 1)]


def _read(track: Track, seconds: float) -> Sound | AudioError:
    """Read the first seconds of a file (0: the whole file)."""
    try:
        rate = track.rate or audio_io.info(track.path).sample_rate
        samples, rate = audio_io.read(track.path, 0, round(seconds * rate) if seconds else None)
        if not samples.shape[1]:
            return AudioError(f"{track.path}: contains no samples")
        if not torch.isfinite(samples).all():
            return AudioError(f"{track.path}: contains NaN or infinite samples")
        return Sound.of(samples, rate)
    except AudioError as error:
        return error
