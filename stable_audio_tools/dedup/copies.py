"""From features to groups of copies: candidates, the second look, clusters, and the one of each that is kept."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from stable_audio_tools.dedup.alignment import Aligned, align
from stable_audio_tools.dedup.clusters import complete_link, single_link
from stable_audio_tools.dedup.settings import Linkage
from stable_audio_tools.dedup.similarity import Progress, SimilarPairs
from stable_audio_tools.dedup.store import FeatureStore
from stable_audio_tools.dedup.tracks import Track, choose_kept

_AT_ONCE = 1_024  # pairs that wait for a thread


class Likeness(NamedTuple):
    """Two files that are alike."""

    first: int
    second: int
    similarity: float  # of their histograms
    aligned: Aligned | None  # None without a second look


@dataclass(frozen=True)
class Copy:
    """A file to leave out, and what it is a copy of."""

    dropped: Track
    like: Track  # the kept one or, where a chain links them, the next in the chain
    similarity: float
    aligned: Aligned | None  # offset: how much later the dropped file has what the other one has


@dataclass(frozen=True)
class CopyGroup:
    """Files that hold the same recording."""

    kept: Track
    copies: tuple[Copy, ...]


def look_again(
    store: FeatureStore,
    tracks: Sequence[Track],
    others: Sequence[Track],
    pairs: SimilarPairs,
    workers: int,
    progress: Progress,
) -> list[Likeness]:
    """Every pair with how its frames agree."""

    def compare(place: int) -> Likeness:
        first, second = int(pairs.first[place]), int(pairs.second[place])
        aligned = align(store.frames(tracks[first]), store.frames(others[second]))
        return Likeness(first, second, float(pairs.similarity[place]), aligned)

    found: list[Likeness] = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(pairs), _AT_ONCE):
            found += pool.map(compare, range(start, min(start + _AT_ONCE, len(pairs))))
            progress(len(found) / len(pairs))
    return found


def without_second_look(pairs: SimilarPairs) -> list[Likeness]:
    """Every pair as its histograms have it."""
    return [Likeness(int(i), int(j), float(value), None) for i, j, value in zip(*pairs)]


def confirmed(likenesses: Sequence[Likeness], threshold: float, aligned_threshold: float) -> list[Likeness]:
    """The pairs that are copies."""
    return [
        pair
        for pair in likenesses
        if pair.similarity >= threshold and (pair.aligned is None or pair.aligned.score >= aligned_threshold)
    ]


def group_copies(
    tracks: Sequence[Track], likenesses: Sequence[Likeness], linkage: Linkage, keep: Sequence[str]
) -> list[CopyGroup]:
    """Groups of copies, and the one of each to keep."""
    pairs = [(pair.first, pair.second) for pair in likenesses]
    if linkage == "single":
        clusters = single_link(len(tracks), pairs)
    else:
        clusters = complete_link(len(tracks), pairs, [pair.similarity for pair in likenesses])
    links = _links(likenesses)
    groups = []
    for cluster in clusters:
        kept = choose_kept([tracks[member] for member in cluster], keep)
        place = next(member for member in cluster if tracks[member] == kept)
        copies = [_copy(tracks, member, place, links[member]) for member in cluster if member != place]
        groups.append(CopyGroup(kept, tuple(copies)))
    return groups


def _links(likenesses: Sequence[Likeness]) -> dict[int, dict[int, Likeness]]:
    """For each file those that it is like."""
    links: dict[int, dict[int, Likeness]] = defaultdict(dict)
    for pair in likenesses:
        links[pair.first][pair.second] = links[pair.second][pair.first] = pair
    return links


def _copy(tracks: Sequence[Track], dropped: int, kept: int, links: Mapping[int, Likeness]) -> Copy:
    other = kept if kept in links else max(links, key=lambda member: (links[member].similarity, -member))
    pair = links[other]
    aligned = pair.aligned
    if aligned is not None and dropped == pair.second:
        aligned = Aligned(aligned.score, -aligned.offset_seconds)
    return Copy(tracks[dropped], tracks[other], pair.similarity, aligned)
