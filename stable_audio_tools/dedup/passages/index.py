"""An index of recordings on disk: their landmarks, sorted by code, in segments that are mapped into memory.

A segment is a folder that is complete when it has its final name. A run that was stopped therefore continues with the
files that no segment holds, and several processes write segments side by side.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.resampling import resample
from stable_audio_tools.dedup.passages import landmarks
from stable_audio_tools.dedup.passages.landmarks import Peaks, find_landmarks, find_peaks
from stable_audio_tools.dedup.store import Failure
from stable_audio_tools.dedup.tracks import Track

VERSION = 1
TRACKS_PER_SEGMENT = 1_024
_ABOUT = "index.json"
_BLOCK_SECONDS = 60  # decoded at a time
POSTING = np.dtype([("track", "<u2"), ("frame", "<u4"), ("pitch", "u1"), ("duration", "u1")])
PEAK = np.dtype([("frame", "<u4"), ("pitch", "<u2")])  # in sixteenths of a frame and of a bin
_FINE = 16
_MOST_HITS = 2_000_000  # of a query, which bounds its time and memory


class IndexedTrack(NamedTuple):
    """A recording in an index."""

    name: str  # dataset and path, as in path lists
    path: str
    size: int
    mtime_ns: int
    seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        return self.path, self.size, self.mtime_ns

    def as_track(self) -> Track:
        """Return the file as a member of its dataset, for path lists and the rules of what to keep."""
        id, _, relpath = self.name.partition(":")
        return Track(id, relpath, self.path, self.size, self.mtime_ns, round(self.seconds * 1000), 1000, "", False)


@dataclass(frozen=True)
class Hits:
    """Landmarks that a query shares with an index; row i of each array belongs together."""

    track: NDArray[np.int64]
    query: NDArray[np.int64]  # row of the query's landmarks
    frame: NDArray[np.float32]
    pitch: NDArray[np.float32]
    duration: NDArray[np.float32]


class Segment:
    """Landmarks of up to 1,024 recordings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "tracks.jsonl").open(encoding="utf-8", errors="surrogateescape") as lines:
            self.tracks = [IndexedTrack(**json.loads(line)) for line in lines]

    @cached_property
    def codes(self) -> NDArray[np.uint32]:
        return np.load(self.folder / "codes.npy", mmap_mode="r")

    @cached_property
    def postings(self) -> NDArray[np.void]:
        return np.load(self.folder / "postings.npy", mmap_mode="r")

    @cached_property
    def _peaks(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        return np.load(self.folder / "peaks.npy", mmap_mode="r"), np.load(self.folder / "starts.npy")

    def peaks(self, place: int) -> Peaks:
        """Return the peaks of one of the recordings."""
        stored, starts = self._peaks
        rows = stored[starts[place] : starts[place + 1]]
        return Peaks(rows["frame"].astype(np.float32) / _FINE, rows["pitch"].astype(np.float32) / _FINE)

    def find(self, codes: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first posting of each code, and how many there are."""
        left = np.searchsorted(self.codes, codes, "left")
        return left, np.searchsorted(self.codes, codes, "right") - left

    def read(self, left: NDArray[np.int64], counts: NDArray[np.int64]) -> Hits:
        """Return postings; `track` counts from the segment's first recording."""
        query = np.repeat(np.arange(len(left)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        found = self.postings[np.repeat(left, counts) + within]
        return Hits(
            found["track"].astype(np.int64),
            query,
            found["frame"].astype(np.float32),
            found["pitch"].astype(np.float32),
            found["duration"].astype(np.float32),
        )


class PassageIndex:
    """An index of recordings in a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        about = self.folder / _ABOUT
        if not about.is_file():
            raise ConfigError(f"{folder}: not an index of recordings; create one with `dedup index`")
        settings = json.loads(about.read_text())
        if settings.get("version") != VERSION:
            raise ConfigError(
                f"{folder}: version {settings.get('version')} of the index cannot be read here, which writes version "
                f"{VERSION}; create it again in another folder"
            )
        self.sampling = int(settings["sampling"])
        self.segments = [Segment(path) for path in sorted(self.folder.glob("segment-*"))]
        self._starts = np.cumsum([0, *(len(segment.tracks) for segment in self.segments)])

    @classmethod
    def create(cls, folder: str | Path, sampling: int) -> "PassageIndex":
        """Open an index, or start an empty one; the sampling of an existing one must be the same."""
        about = Path(folder) / _ABOUT
        if not about.is_file():
            write_text(about, json.dumps({"version": VERSION, "sampling": sampling}) + "\n")
        index = cls(folder)
        if index.sampling != sampling:
            raise ConfigError(
                f"{folder}: holds one in {index.sampling} landmarks, and --sampling {sampling} was asked for; use "
                f"--sampling {index.sampling} or another folder"
            )
        return index

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def tracks(self) -> list[IndexedTrack]:
        return [track for segment in self.segments for track in segment.tracks]

    def track(self, number: int) -> IndexedTrack:
        segment, place = self._find(number)
        return segment.tracks[place]

    def peaks(self, number: int) -> Peaks:
        segment, place = self._find(number)
        return segment.peaks(place)

    def _find(self, number: int) -> tuple[Segment, int]:
        row = int(np.searchsorted(self._starts, number, "right")) - 1
        return self.segments[row], number - int(self._starts[row])

    def look_up(self, codes: NDArray[np.uint32]) -> Iterator[Hits]:
        """Yield the shared landmarks of each segment, with the numbers of recordings in the whole index.

        Codes that are rare in the index come first, until two million landmarks are found: the others say little.
        """
        places = [segment.find(codes) for segment in self.segments]
        totals = np.sum([counts for _, counts in places], axis=0)
        order = np.argsort(totals, kind="stable")
        is_common = np.empty(len(codes), bool)
        is_common[order] = np.cumsum(totals[order]) > _MOST_HITS
        for segment, start, (left, counts) in zip(self.segments, self._starts, places):
            hits = segment.read(left, np.where(is_common, 0, counts))
            yield Hits(hits.track + start, hits.query, hits.frame, hits.pitch, hits.duration)


# ------------------------------------------------------------------ building


def read_for_landmarks(path: str | Path) -> Tensor:
    """Read a whole recording as mono audio (n,) at 11,025 Hz, a minute at a time."""
    about = audio_io.info(path)
    block = _BLOCK_SECONDS * about.sample_rate
    parts = []
    for start in range(0, max(1, about.frames), block):
        samples, rate = audio_io.read(path, start, min(block, about.frames - start))
        if not torch.isfinite(samples).all():
            raise AudioError(f"{path}: contains NaN or infinite samples")
        parts.append(resample(samples.mean(0, keepdim=True), rate, landmarks.SAMPLE_RATE)[0])
    return torch.cat(parts) if parts else torch.zeros(0)


class _Analysed(NamedTuple):
    track: IndexedTrack
    peaks: Peaks


def build(folder: str | Path, tracks: Sequence[Track], sampling: int, workers: int) -> Iterator[Failure | None]:
    """Add recordings to an index; yield None for each that is indexed, and the reason for each that cannot be."""
    index = PassageIndex.create(folder, sampling)
    known = {track.key for track in index.tracks}
    missing = [track for track in tracks if (track.path, track.size, track.mtime_ns) not in known]
    yield from (None for _ in range(len(tracks) - len(missing)))
    waiting: list[_Analysed] = []
    with ThreadPoolExecutor(workers) as pool:
        for track, result in _analyse_ahead(pool, missing, 2 * workers):
            if isinstance(result, AudioError):
                yield Failure(track.path, type(result).__name__, str(result).removeprefix(f"{track.path}: "))
                continue
            waiting.append(result)
            if len(waiting) == TRACKS_PER_SEGMENT:
                write_segment(index.folder, waiting, sampling)
                waiting.clear()
            yield None
    if waiting:
        write_segment(index.folder, waiting, sampling)


def _analyse_ahead(
    pool: ThreadPoolExecutor, tracks: Iterable[Track], most: int
) -> Iterator[tuple[Track, _Analysed | AudioError]]:
    source = iter(tracks)
    running = [(track, pool.submit(_analyse, track)) for track in islice(source, most)]
    while running:
        track, future = running.pop(0)
        yield track, future.result()
        running += [(later, pool.submit(_analyse, later)) for later in islice(source, 1)]


def _analyse(track: Track) -> _Analysed | AudioError:
    if track.fault:
        return AudioError(track.fault)
    try:
        audio = read_for_landmarks(track.path)
    except AudioError as error:
        return error
    seconds = len(audio) / landmarks.SAMPLE_RATE
    about = IndexedTrack(track.qualified, track.path, track.size, track.mtime_ns, round(seconds, 3))
    return _Analysed(about, find_peaks(audio))


def write_segment(folder: Path, analysed: Sequence[tuple[IndexedTrack, Peaks]], sampling: int) -> None:
    """Write a segment of up to 65,536 recordings under a temporary name and rename it."""
    codes, postings = [], []
    for place, (_, peaks) in enumerate(analysed):
        found = find_landmarks(peaks, sampling)
        rows = np.empty(len(found.code), POSTING)
        rows["track"] = place
        rows["frame"] = found.frame.round()
        rows["pitch"] = found.pitch.round()
        rows["duration"] = found.duration.round()
        codes.append(found.code)
        postings.append(rows)
    code = np.concatenate(codes)
    order = np.argsort(code, kind="stable")
    stored = np.empty(sum(len(peaks.frame) for _, peaks in analysed), PEAK)
    stored["frame"] = np.concatenate([np.round(peaks.frame * _FINE) for _, peaks in analysed])
    stored["pitch"] = np.concatenate([np.round(peaks.pitch * _FINE) for _, peaks in analysed])
    lines = "".join(json.dumps(track._asdict()) + "\n" for track, _ in analysed)
    name = blake2b(lines.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    temporary = folder / f".part-{os.getpid()}-{name}"
    temporary.mkdir(parents=True)
    try:
        np.save(temporary / "codes.npy", code[order])
        np.save(temporary / "postings.npy", np.concatenate(postings)[order])
        np.save(temporary / "peaks.npy", stored)
        np.save(temporary / "starts.npy", np.cumsum([0, *(len(peaks.frame) for _, peaks in analysed)]))
        (temporary / "tracks.jsonl").write_text(lines, encoding="utf-8", errors="surrogateescape")
        temporary.rename(folder / f"segment-{name}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
