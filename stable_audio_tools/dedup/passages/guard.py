"""A check of generated audio against an index of the training set."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.resampling import resample
from stable_audio_tools.dedup.passages.index import PassageIndex
from stable_audio_tools.dedup.passages.landmarks import SAMPLE_RATE, find_peaks
from stable_audio_tools.dedup.passages.search import find_passages
from stable_audio_tools.dedup.passages.settings import CopyAction, CopyCheck

_LEAST_SECONDS, _LEAST_AGREEMENT = 2.0, 0.4  # chance matches of a few seconds agree in less
_FADE_SECONDS = 0.05


class CopiedPassage(NamedTuple):
    """A passage of generated audio that a recording contains."""

    track: str  # dataset and path
    start: float  # seconds in the generated audio
    end: float
    track_start: float  # seconds in the recording
    speed: float
    semitones: float
    agreement: float


class CopyGuard:
    """Looks up generated audio in an index; `report` names the passages, `withhold` silences them, too."""

    def __init__(
        self,
        index: str | Path,
        action: CopyAction = "report",
        least_seconds: float = _LEAST_SECONDS,
        least_agreement: float = _LEAST_AGREEMENT,
    ) -> None:
        self.index, self.action = PassageIndex(index), action
        self.least_seconds, self.least_agreement = least_seconds, least_agreement
        if not len(self.index):
            raise ConfigError(f"{index}: holds no recording; add some with `dedup index`")

    @property
    def settings(self) -> JsonObject:
        """Settings that affect the result, to be recorded in each file."""
        names = "\0".join(segment.folder.name for segment in self.index.segments)
        digest = blake2b(names.encode(), digest_size=8).hexdigest()
        return {"copy_check": {"index": digest, "action": self.action, "recordings": len(self.index)}}

    def find(self, audio: Tensor, sample_rate: int) -> list[CopiedPassage]:
        """Return the copied passages of audio (c, n) in the order of time; of overlapping ones the best."""
        mono = resample(audio.detach().float().cpu().mean(0, keepdim=True), sample_rate, SAMPLE_RATE)[0]
        passages = find_passages(self.index, find_peaks(mono), self.least_agreement, self.least_seconds)
        chosen: list[CopiedPassage] = []
        for one in passages:
            middle = (one.start + one.end) / 2
            if not any(other.start <= middle <= other.end for other in chosen):
                name = self.index.track(one.track).name
                chosen.append(
                    CopiedPassage(name, one.start, one.end, one.track_start, one.speed, one.semitones, one.agreement)
                )
        return sorted(chosen, key=lambda one: one.start)

    def __call__(self, audio: Tensor, sample_rate: int) -> tuple[Tensor, JsonObject]:
        """Return the audio, silenced where the action says so, and what was found for the settings in its file."""
        found = self.find(audio, sample_rate)
        if self.action == "withhold" and found:
            audio = silence(audio, sample_rate, found)
        return audio, {"copies": [one._asdict() for one in found]} if found else {}


def guard_of(settings: CopyCheck) -> CopyGuard | None:
    """Return the check that a command asks for."""
    return None if settings.check_copies is None else CopyGuard(settings.check_copies, settings.copies)


def silence(audio: Tensor, sample_rate: int, passages: Sequence[CopiedPassage]) -> Tensor:
    """Return audio (c, n) with the passages faded out."""
    gain = torch.ones(audio.shape[-1], dtype=audio.dtype)
    fade = max(1, round(_FADE_SECONDS * sample_rate))
    slope = 0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, fade, dtype=audio.dtype))
    for one in passages:
        start, end = round(one.start * sample_rate), min(len(gain), round(one.end * sample_rate))
        gain[start:end] = 0
        before = gain[max(0, start - fade) : start]
        before.copy_(torch.minimum(before, slope[fade - len(before) :]))
        after = gain[end : end + fade]
        after.copy_(torch.minimum(after, slope.flip(0)[: len(after)]))
    return audio * gain.to(audio.device)
