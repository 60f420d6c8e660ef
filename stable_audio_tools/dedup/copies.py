"""Groups of copies: alignment of candidates, clustering, the file to keep, and the decision per threshold."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stable_audio_tools.dedup.settings import DedupSettings, Linkage
from stable_audio_tools.dedup.similarity import Progress, SimilarPairs
from stable_audio_tools.dedup.spectrum import Aligned, align
from stable_audio_tools.dedup.store import Failure, FeatureStore
from stable_audio_tools.dedup.tracks import Track, choose_kept

_AT_ONCE = 1_024  # pairs queued for the threads


class SimilarFiles(NamedTuple):
    """Two similar files, by their index."""

    first: int
    second: int
    similarity: float  # of their histograms
    aligned: Aligned | None  # None if frames were not compared


@dataclass(frozen=True)
class Copy:
    """A file to exclude, and the file that it duplicates."""

    dropped: Track
    like: Track  # the kept file, or the next file in the chain that leads to it
    similarity: float
    aligned: Aligned | None  # its offset is the delay of the dropped file


@dataclass(frozen=True)
class CopyGroup:
    """Files of the same recording, and the one to keep."""

    kept: Track
    copies: tuple[Copy, ...]


def compare_frames(
    store: FeatureStore,
    tracks: Sequence[Track],
    others: Sequence[Track],
    pairs: SimilarPairs,
    workers: int,
    progress: Progress,
) -> list[SimilarFiles]:
    """Align the frames of every pair."""

    def compare(place: int) -> SimilarFiles:
        first, second = int(pairs.first[place]), int(pairs.second[place])
        aligned = align(store.frames(tracks[first]), store.frames(others[second]))
        return SimilarFiles(first, second, float(pairs.similarity[place]), aligned)

    found: list[SimilarFiles] = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(pairs), _AT_ONCE):
            found += pool.map(compare, range(start, min(start + _AT_ONCE, len(pairs))))
            progress(len(found) / len(pairs))
    return found


def without_frames(pairs: SimilarPairs) -> list[SimilarFiles]:
    """Return every pair without an alignment."""
    return [SimilarFiles(int(i), int(j), float(value), None) for i, j, value in zip(*pairs)]


def confirmed(pairs_found: Sequence[SimilarFiles], threshold: float, aligned_threshold: float) -> list[SimilarFiles]:
    """Return the pairs that reach both thresholds."""
    return [
        pair
        for pair in pairs_found
        if pair.similarity >= threshold and (pair.aligned is None or pair.aligned.score >= aligned_threshold)
    ]


def group_copies(
    tracks: Sequence[Track], pairs_found: Sequence[SimilarFiles], linkage: Linkage, keep: Sequence[str]
) -> list[CopyGroup]:
    """Cluster the pairs and choose the file to keep of each group."""
    pairs = [(pair.first, pair.second) for pair in pairs_found]
    if linkage == "single":
        clusters = single_link(len(tracks), pairs)
    else:
        clusters = complete_link(len(tracks), pairs, [pair.similarity for pair in pairs_found])
    links = _links(pairs_found)
    groups = []
    for cluster in clusters:
        kept = choose_kept([tracks[member] for member in cluster], keep)
        place = next(member for member in cluster if tracks[member] == kept)
        copies = [_copy(tracks, member, place, links[member]) for member in cluster if member != place]
        groups.append(CopyGroup(kept, tuple(copies)))
    return groups


def _links(pairs_found: Sequence[SimilarFiles]) -> dict[int, dict[int, SimilarFiles]]:
    """Index the pairs by both of their files."""
    links: dict[int, dict[int, SimilarFiles]] = defaultdict(dict)
    for pair in pairs_found:
        links[pair.first][pair.second] = links[pair.second][pair.first] = pair
    return links


def _copy(tracks: Sequence[Track], dropped: int, kept: int, links: Mapping[int, SimilarFiles]) -> Copy:
    other = kept if kept in links else max(links, key=lambda member: (links[member].similarity, -member))
    pair = links[other]
    aligned = pair.aligned
    if aligned is not None and dropped == pair.second:
        aligned = Aligned(aligned.score, -aligned.offset_seconds)
    return Copy(tracks[dropped], tracks[other], pair.similarity, aligned)


# ------------------------------------------------------------------ clusters


def single_link(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of two or more items that chains of pairs connect."""
    if not pairs:
        return []
    first, second = np.asarray(pairs).T
    graph = coo_matrix((np.ones(len(pairs), bool), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def complete_link(count: int, pairs: Sequence[tuple[int, int]], similarity: Sequence[float]) -> list[list[int]]:
    """Return groups in which every two items are a pair; the most similar pairs are joined first."""
    known = {frozenset(pair) for pair in pairs}
    group = {member: [member] for pair in pairs for member in pair}
    for _, first, second in sorted((-value, *pair) for pair, value in zip(pairs, similarity)):
        one, other = group[first], group[second]
        if one is not other and all(frozenset((a, b)) in known for a in one for b in other):
            joined = one + other
            group.update(dict.fromkeys(joined, joined))
    unique = {min(members): sorted(members) for members in group.values() if len(members) > 1}
    return [unique[first] for first in sorted(unique)]


# ------------------------------------------------------------------ decisions


@dataclass(frozen=True)
class Evidence:
    """Files of a run and the similar pairs among them."""

    tracks: list[Track]
    others: list[Track]  # files of the other dataset
    scanned: int  # number of files before --limit
    failures: list[Failure]
    within: list[SimilarFiles]  # pairs of `analysed`
    across: list[SimilarFiles]  # pairs of `analysed` and `analysed_others`

    @property
    def analysed(self) -> list[Track]:
        return without_failures(self.tracks, self.failures)

    @property
    def analysed_others(self) -> list[Track]:
        return without_failures(self.others, self.failures)


class DecisionCounts(TypedDict):
    """Numbers of pairs, groups and files at one threshold."""

    candidate_pairs: int
    duplicate_pairs: int
    clusters: int
    duplicate_files: int
    leaking_files: int


class SweepRow(DecisionCounts):
    """Counts at one threshold of `--sweep`."""

    threshold: float


@dataclass(frozen=True)
class DedupDecision:
    """Groups, leaks and excluded files at one threshold."""

    groups: list[CopyGroup]
    leaks: list[SimilarFiles]
    dropped: set[Track]  # copies of a kept file
    leaking: set[Track]  # files that the other dataset contains as well, and their copies
    broken: set[Track]
    candidates: int
    pairs: int

    def counts(self) -> "DecisionCounts":
        return {
            "candidate_pairs": self.candidates,
            "duplicate_pairs": self.pairs,
            "clusters": len(self.groups),
            "duplicate_files": len(self.dropped),
            "leaking_files": len(self.leaking),
        }


def without_failures(tracks: Sequence[Track], failures: Sequence[Failure]) -> list[Track]:
    """Return the files that could be analysed."""
    failed = {failure.path for failure in failures}
    return [track for track in tracks if track.path not in failed]


def decide(evidence: Evidence, settings: DedupSettings, threshold: float) -> DedupDecision:
    """Decide which files are copies or leaks at a threshold."""
    analysed = evidence.analysed
    pairs = confirmed(evidence.within, threshold, settings.aligned_threshold)
    groups = group_copies(analysed, pairs, settings.linkage, settings.keep)
    leaks = confirmed(evidence.across, threshold, settings.aligned_threshold)
    return DedupDecision(
        groups,
        leaks,
        {copy.dropped for group in groups for copy in group.copies},
        _leaking(analysed, groups, leaks),
        set(evidence.tracks).difference(analysed),
        sum(pair.similarity >= threshold for pair in evidence.within),
        len(pairs),
    )


def _leaking(tracks: Sequence[Track], groups: Sequence[CopyGroup], leaks: Sequence[SimilarFiles]) -> set[Track]:
    found = {tracks[pair.first] for pair in leaks}
    for group in groups:
        members = {group.kept, *(copy.dropped for copy in group.copies)}
        if members & found:
            found |= members
    return found


def sweep_thresholds(evidence: Evidence, settings: DedupSettings) -> "list[SweepRow]":
    """Count the copies at each threshold of the sweep."""
    return [
        SweepRow(threshold=threshold, **decide(evidence, settings, threshold).counts())
        for threshold in sorted(settings.sweep)
    ]
