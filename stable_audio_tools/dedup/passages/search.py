"""Passages that a recording shares with an index: aligned, with their speed and pitch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.dedup.passages.index import PassageIndex
from stable_audio_tools.dedup.passages.landmarks import BINS_PER_OCTAVE, FRAMES_PER_SECOND, Peaks, find_probes

FloatArray = NDArray[np.float64]

FASTEST = 1.15  # largest change of speed in either direction
_HIGHEST = 7.5  # bins of largest change of pitch: 2.5 semitones
_LEAST_HITS = 5  # shared landmarks of one alignment
_BLOCK, _CELL = 10 * FRAMES_PER_SECOND, 2 * FRAMES_PER_SECOND  # of the query, of the recording
_LEAST_IN_CELL = 3  # peaks of a block with shared landmarks of nearly one pitch and offset, to align a recording
_CANDIDATES = 100  # recordings that are aligned, those with the most shared landmarks first
_SPEEDS = np.exp(np.arange(-28, 29) * 0.005)
_COARSE, _FINE = FRAMES_PER_SECOND, 0.15 * FRAMES_PER_SECOND  # tolerances when an alignment is searched and fitted
_LONGEST_GAP = 3 * FRAMES_PER_SECOND  # between shared landmarks of one passage
_PASSAGES = 12  # of a pair of recordings
_NEAR_FRAMES, _NEAR_BINS = 2.5, 0.8  # two peaks within so many frames and bins are the same


class Passage(NamedTuple):
    """A passage of a query that a recording of the index contains."""

    track: int  # number in the index
    start: float  # seconds in the query
    end: float
    track_start: float  # seconds in the recording
    track_end: float
    speed: float  # of the query relative to the recording
    semitones: float  # of the query relative to the recording
    hits: int  # shared landmarks
    agreement: float  # share of the recording's peaks in the passage that the query has, too, 0 to 1

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class _Shared:
    """Landmarks that a query shares with one recording."""

    query_frame: FloatArray  # of the first peak
    query_end: FloatArray  # of the last peak
    track_frame: FloatArray
    pitch: FloatArray  # of the query minus that of the recording, bins
    speed: FloatArray  # duration in the recording over that in the query

    def __len__(self) -> int:
        return len(self.query_frame)

    def where(self, chosen: NDArray[np.bool_]) -> "_Shared":
        return _Shared(*(values[chosen] for values in vars(self).values()))


class _Line(NamedTuple):
    """An alignment: track_frame = speed x query_frame + offset."""

    speed: float
    offset: float
    pitch: float


def find_passages(index: PassageIndex, peaks: Peaks, least_agreement: float, least_seconds: float) -> list[Passage]:
    """Return the passages of a query that recordings of the index contain, the longest first."""
    found = []
    for track, shared in _candidates(index, peaks):
        found += _passages_of(track, shared, peaks, index.peaks(track))
    kept = [one for one in found if one.agreement >= least_agreement and one.seconds >= least_seconds]
    return sorted(kept, key=lambda one: (-one.seconds * one.agreement, one.track, one.start))


def _candidates(index: PassageIndex, peaks: Peaks) -> Iterator[tuple[int, _Shared]]:
    """Yield the recordings with the most shared landmarks of plausible speed and pitch."""
    probes = find_probes(peaks, index.sampling)
    tracks, queries, ends, frames, pitches, speeds = [], [], [], [], [], []
    for hits in index.look_up(probes.code):
        pitch = probes.pitch[hits.query] - hits.pitch
        speed = hits.duration / probes.duration[hits.query]
        plausible = (np.abs(pitch) <= _HIGHEST) & (np.abs(np.log(speed)) <= math.log(FASTEST) + 0.07)
        tracks.append(hits.track[plausible])
        queries.append(probes.frame[hits.query[plausible]])
        ends.append(queries[-1] + probes.duration[hits.query[plausible]])
        frames.append(hits.frame[plausible])
        pitches.append(pitch[plausible])
        speeds.append(speed[plausible])
    if not tracks:
        return
    track = np.concatenate(tracks)
    shared = _Shared(*(np.concatenate(parts).astype(np.float64) for parts in (queries, ends, frames, pitches, speeds)))
    agreeing = _agreeing(shared, track)
    order = np.lexsort((-agreeing, track))
    aligned, places = np.unique(track[order], return_index=True)
    most = agreeing[order][places]
    best = aligned[np.argsort(-most, kind="stable")][: min(_CANDIDATES, int((most >= _LEAST_IN_CELL).sum()))]
    for number in best:
        yield int(number), shared.where(track == number)


def _agreeing(shared: _Shared, track: NDArray[np.int64]) -> FloatArray:
    """Return with how many peaks of ten seconds of the query each landmark agrees on recording, pitch and offset."""
    agreeing = np.zeros(len(shared))
    block = np.floor(shared.query_frame / _BLOCK)
    place = shared.track_frame + ((block + 0.5) * _BLOCK - shared.query_frame) * shared.speed
    for shift in (0.0, 0.5):  # of the cells, since a border may divide what belongs together
        pitch, offset = np.floor(shared.pitch / 2 + shift), np.floor(place / _CELL + shift)
        keys = np.stack([track, block, pitch, offset, shared.query_frame])
        order = np.lexsort(keys[::-1])
        changes = np.diff(keys[:, order], axis=1, prepend=np.nan) != 0
        cell = np.cumsum(changes[:-1].any(axis=0)) - 1
        peaks = np.bincount(cell, weights=changes.any(axis=0))  # one peak of the query begins many landmarks
        agreeing[order] = np.maximum(agreeing[order], peaks[cell])
    return agreeing


def _passages_of(track: int, shared: _Shared, query: Peaks, recording: Peaks) -> list[Passage]:
    """Find alignments one after another; each explains landmarks that the others before it left."""
    passages: list[Passage] = []
    while len(passages) < _PASSAGES:
        strong = shared.where(_agreeing(shared, np.zeros(len(shared), np.int64)) >= _LEAST_IN_CELL)
        line = _best_line(shared, np.unique(np.round(strong.pitch)))
        if line is None:
            break
        near = np.abs(line.speed * shared.query_frame + line.offset - shared.track_frame) <= 2 * _FINE
        near &= np.abs(shared.pitch - line.pitch) <= 1.5
        spans = list(_spans(shared.query_frame[near], shared.query_end[near]))
        for start, end in spans:
            inside = near & (shared.query_frame >= start) & (shared.query_frame <= end)
            hits = len(np.unique(shared.query_frame[inside]))
            covered = any(one.start <= (start + end) / 2 / FRAMES_PER_SECOND <= one.end for one in passages)
            if hits >= _LEAST_HITS and not covered:
                passages.append(_passage(track, line, start, end, hits, query, recording))
        shared = shared.where(~near)
    return passages


def _best_line(shared: _Shared, pitches: FloatArray) -> _Line | None:
    """Find the speed, offset and pitch on which most landmarks agree; the pitch is near one of `pitches`."""
    best, best_count = None, _LEAST_HITS - 1
    for pitch in pitches:
        alike = shared.where(np.abs(shared.pitch - pitch) <= 1)
        if len(alike) <= best_count:
            continue
        speeds = _SPEEDS[:, None]
        offsets = np.round((alike.track_frame - speeds * alike.query_frame) / _COARSE).astype(np.int64)
        fits = np.abs(np.log(alike.speed / speeds)) <= 0.07
        offsets -= offsets.min()
        width = int(offsets.max()) + 2
        cells = (np.arange(len(_SPEEDS))[:, None] * width + offsets)[fits]
        counts = np.bincount(cells, minlength=len(_SPEEDS) * width).reshape(len(_SPEEDS), width)
        counts[:, 1:] += counts[:, :-1].copy()  # two neighbouring cells, as an offset may be on their border
        row, column = np.unravel_index(int(counts.argmax()), counts.shape)
        if counts[row, column] > best_count:
            chosen = fits[row] & ((offsets[row] == column) | (offsets[row] == column - 1))
            line = _fit(alike.where(chosen), float(_SPEEDS[row]))
            if line is not None:
                best, best_count = line, int(counts[row, column])
    return best


def _fit(shared: _Shared, speed: float) -> _Line | None:
    """Fit a line by least squares with a falling tolerance."""
    offset = float(np.median(shared.track_frame - speed * shared.query_frame))
    for tolerance in (_COARSE, _COARSE / 2, _FINE, _FINE):
        residual = shared.track_frame - speed * shared.query_frame - offset
        near = np.abs(residual - np.median(residual)) <= tolerance
        frames = shared.query_frame[near]
        if len(np.unique(frames)) < _LEAST_HITS:
            return None
        centred = frames - frames.mean()
        spread = float(centred @ centred)
        if spread > 0:
            speed = float(centred @ shared.track_frame[near]) / spread
        offset = float((shared.track_frame[near] - speed * frames).mean())
    if not 1 / FASTEST <= speed <= FASTEST:
        return None
    return _Line(speed, offset, float(np.median(shared.pitch[near])))


def _spans(starts: FloatArray, ends: FloatArray) -> Iterator[tuple[float, float]]:
    """Yield the first and last frame of each run of landmarks without a long gap."""
    if not len(starts):
        return
    order = np.argsort(starts)
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    borders = np.flatnonzero(starts[1:] - reached[:-1] > _LONGEST_GAP) + 1
    for run, end in zip(np.split(starts, borders), reached[[*(borders - 1), -1]]):
        yield float(run[0]), float(end)


def _passage(track: int, line: _Line, start: float, end: float, hits: int, query: Peaks, recording: Peaks) -> Passage:
    first, last = line.speed * start + line.offset, line.speed * end + line.offset
    inside = (recording.frame >= first) & (recording.frame <= last)
    expected = Peaks(
        ((recording.frame[inside] - line.offset) / line.speed).astype(np.float32),
        (recording.pitch[inside] + line.pitch).astype(np.float32),
    )
    return Passage(
        track,
        round(start / FRAMES_PER_SECOND, 2),
        round(end / FRAMES_PER_SECOND, 2),
        max(0.0, round(first / FRAMES_PER_SECOND, 2)),
        round(last / FRAMES_PER_SECOND, 2),
        round(line.speed, 4),
        round(line.pitch * 12 / BINS_PER_OCTAVE, 2),
        hits,
        round(_share_present(expected, query), 4),
    )


def _share_present(expected: Peaks, query: Peaks) -> float:
    """Return the share of peaks that are near a peak of the query."""
    if not len(expected.frame):
        return 0.0
    left = np.searchsorted(query.frame, expected.frame - _NEAR_FRAMES)
    right = np.searchsorted(query.frame, expected.frame + _NEAR_FRAMES)
    present = np.zeros(len(expected.frame), bool)
    for step in range(int((right - left).max())):
        place = np.minimum(left + step, len(query.frame) - 1)
        present |= (left + step < right) & (np.abs(query.pitch[place] - expected.pitch) <= _NEAR_BINS)
    return float(present.mean())
