"""Matches of two recordings: their shared passages, and what kind of copy that makes them."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from stable_audio_tools.dedup.passages.index import IndexedTrack
from stable_audio_tools.dedup.passages.landmarks import Peaks
from stable_audio_tools.dedup.passages.search import Passage
from stable_audio_tools.dedup.passages.settings import MatchKind

_WHOLE = 0.8  # share of a recording from which it counts as contained
_LOST_ENDS = 2.0  # seconds at both ends of a passage without a whole landmark
_SAME_SPEED, _SAME_PITCH = 0.003, 0.2  # relative, semitones
_SAME_SOUND = 0.75  # agreement from which nothing but the encoding has changed


class Match(NamedTuple):
    """A query and a recording of the index that share passages."""

    query: IndexedTrack
    track: IndexedTrack
    kind: MatchKind
    covered_query: float  # share of the query's length in shared passages
    covered_track: float
    passages: tuple[Passage, ...]  # in the order of the query

    @property
    def agreement(self) -> float:
        """Mean agreement of the passages, weighted by their length."""
        weights = [one.seconds for one in self.passages]
        return float(np.average([one.agreement for one in self.passages], weights=weights))

    @property
    def excerpt(self) -> IndexedTrack:
        """The recording that the other one contains, if the match is an excerpt."""
        return self.query if self.covered_query >= self.covered_track else self.track


def classify(query: IndexedTrack, track: IndexedTrack, passages: Sequence[Passage], are_equal: bool) -> Match:
    """Say what kind of copy two recordings are; `are_equal` if all their peaks are."""
    ordered = tuple(sorted(passages, key=lambda one: one.start))
    covered_query = _covered(((one.start, one.end) for one in ordered), query.seconds)
    covered_track = _covered(((one.track_start, one.track_end) for one in ordered), track.seconds)
    match = Match(query, track, "passage", covered_query, covered_track, ordered)
    if are_equal:
        return match._replace(kind="exact")
    if min(covered_query, covered_track) >= _WHOLE:
        plain = all(abs(one.speed - 1) <= _SAME_SPEED and abs(one.semitones) <= _SAME_PITCH for one in ordered)
        return match._replace(kind="re-encoded" if plain and match.agreement >= _SAME_SOUND else "altered")
    return match._replace(kind="excerpt") if max(covered_query, covered_track) >= _WHOLE else match


def _covered(spans: Iterable[tuple[float, float]], seconds: float) -> float:
    """Return the share of a recording inside the spans, each with the ends that landmarks cannot reach."""
    total, last = 0.0, 0.0
    for start, end in sorted(spans):
        start, end = max(last, start - _LOST_ENDS / 2), min(seconds, end + _LOST_ENDS / 2)
        if end > start:
            total, last = total + end - start, end
    return round(min(1.0, total / seconds), 4) if seconds else 0.0


def by_track(passages: Sequence[Passage]) -> list[tuple[int, list[Passage]]]:
    """Group passages by the recording of the index."""
    ordered = sorted(passages, key=lambda one: one.track)
    return [(track, list(group)) for track, group in groupby(ordered, key=lambda one: one.track)]


def same_peaks(one: Peaks, other: Peaks) -> bool:
    """Return whether two recordings have the same peaks, as equal audio has."""
    return len(one.frame) > 0 and all(
        len(a) == len(b) and np.allclose(a, b, atol=0.1) for a, b in zip(one, other, strict=True)
    )
