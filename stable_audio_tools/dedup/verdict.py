"""What is left out, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stable_audio_tools.dedup.copies import CopyGroup, Likeness, confirmed, group_copies
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.store import Failure
from stable_audio_tools.dedup.tracks import Track


@dataclass(frozen=True)
class Evidence:
    """What was found in the files."""

    tracks: list[Track]
    others: list[Track]  # of the other data set
    scanned: int  # files before --limit
    failures: list[Failure]
    within: list[Likeness]  # pairs of `heard`
    across: list[Likeness]  # pairs of `heard` and `heard_others`

    @property
    def heard(self) -> list[Track]:
        return without_failures(self.tracks, self.failures)

    @property
    def heard_others(self) -> list[Track]:
        return without_failures(self.others, self.failures)


@dataclass(frozen=True)
class DedupVerdict:
    """What follows from it at one threshold."""

    groups: list[CopyGroup]
    leaks: list[Likeness]
    dropped: set[Track]  # copies of a file that stays
    leaking: set[Track]  # files that the other data set holds too, and their copies
    broken: set[Track]
    candidates: int
    pairs: int

    def counts(self) -> dict[str, int]:
        return {
            "candidate_pairs": self.candidates,
            "duplicate_pairs": self.pairs,
            "clusters": len(self.groups),
            "duplicate_files": len(self.dropped),
            "leaking_files": len(self.leaking),
        }


def without_failures(tracks: Sequence[Track], failures: Sequence[Failure]) -> list[Track]:
    """The files that were heard."""
    failed = {failure.path for failure in failures}
    return [track for track in tracks if track.path not in failed]


def judge(evidence: Evidence, settings: DedupSettings, threshold: float) -> DedupVerdict:
    """Groups of copies and leaks at a threshold."""
    heard = evidence.heard
    pairs = confirmed(evidence.within, threshold, settings.aligned_threshold)
    groups = group_copies(heard, pairs, settings.linkage, settings.keep)
    leaks = confirmed(evidence.across, threshold, settings.aligned_threshold)
    return DedupVerdict(
        groups,
        leaks,
        {copy.dropped for group in groups for copy in group.copies},
        _leaking(heard, groups, leaks),
        set(evidence.tracks).difference(heard),
        sum(pair.similarity >= threshold for pair in evidence.within),
        len(pairs),
    )


def _leaking(tracks: Sequence[Track], groups: Sequence[CopyGroup], leaks: Sequence[Likeness]) -> set[Track]:
    found = {tracks[pair.first] for pair in leaks}
    for group in groups:
        members = {group.kept, *(copy.dropped for copy in group.copies)}
        if members & found:
            found |= members
    return found


def sweep_thresholds(evidence: Evidence, settings: DedupSettings) -> list[dict[str, Any]]:
    """What each threshold of the sweep would do."""
    return [
        {"threshold": threshold, **judge(evidence, settings, threshold).counts()}
        for threshold in sorted(settings.sweep)
    ]
