"""Other audio as the start: varied, made anew in places, continued, or mixed with another clip.

For any diffusion model; one that was not trained to inpaint keeps what it is given as `keeping` describes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from stable_audio_tools.inference.generation.diffusion import Audio
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.windows import between, inpaint, outpaint, vary

Mode = Literal["variation", "inpaint", "outpaint", "interpolate"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Edit:
    """What to do with audio; numbers that the mode has no use for are refused by `problems`."""

    mode: Mode
    audio: str
    to_audio: str | None = None  # interpolate
    noise_level: float | None = None  # variation
    spans: tuple[tuple[float, float], ...] | None = None  # inpaint: seconds made anew
    seconds: float | None = None  # outpaint: length in all
    overlap: float | None = None  # outpaint: seconds that each window is given of what is there
    crossfade: float | None = None  # seconds
    match_loudness: bool = True  # outpaint

    @property
    def keeps_audio(self) -> bool:
        """Does part of the audio stay as it is?"""
        return self.mode in ("inpaint", "outpaint")

    def problems(self, facts: ModelFacts) -> Iterator[str]:
        """What is wrong with it, a sentence each."""
        if facts.objective is None:
            yield f"mode: {self.mode!r} is for diffusion models, and this is a model of type {facts.model_type!r}"
            return
        uses = {
            "to_audio": ("interpolate",),
            "noise_level": ("variation",),
            "spans": ("inpaint",),
            "seconds": ("outpaint",),
            "overlap": ("outpaint",),
            "crossfade": ("inpaint", "outpaint"),
        }
        for name, modes in uses.items():
            if getattr(self, name) is not None and self.mode not in modes:
                yield f"{name.replace('_', '-')}: is for the mode {' and '.join(modes)}, not for {self.mode!r}"
        needed = {"interpolate": "to_audio", "inpaint": "spans", "outpaint": "seconds"}.get(self.mode)
        if needed is not None and getattr(self, needed) is None:
            yield f"{needed.replace('_', '-')}: missing; the mode {self.mode!r} needs it"
        if not self.match_loudness and self.mode != "outpaint":
            yield f"keep-level: is for the mode outpaint, not for {self.mode!r}"
        yield from self._numbers_out_of_range(facts.window_seconds)

    def _numbers_out_of_range(self, window: float) -> Iterator[str]:
        if self.overlap is not None and not 0 < self.overlap < window:
            yield f"overlap: expected more than 0 and less than the model's {window:.2f} s, got {self.overlap:g}"
        if self.crossfade is not None and not 0 <= self.crossfade < math.inf:
            yield f"crossfade: expected at least 0 seconds, got {self.crossfade:g}"
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            yield f"seconds: expected more than 0, got {self.seconds:g}"
        if self.noise_level is not None and not 0 < self.noise_level < math.inf:
            yield f"noise-level: expected more than 0, got {self.noise_level:g}"
        for start, end in self.spans or ():
            if not 0 <= start < end < math.inf:
                yield f"spans: expected FROM-TO in seconds with FROM before TO, got {start:g}-{end:g}"


def edit_audio(
    model: AudioModel, edit: Edit, source: Audio, target: Audio | None, weights: Sequence[float], **options: Any
) -> Tensor:
    """Audio (b, c, n): `source` as `edit` says; `target` and `weights`, one per item, are for interpolation.

    `options` are those of `AudioModel.generate`.
    """
    if edit.mode == "variation":
        return vary(model, source, edit.noise_level, **options)
    if edit.mode == "inpaint":
        assert edit.spans is not None
        return inpaint(model, source, edit.spans, edit.crossfade, **options)
    if edit.mode == "interpolate":
        assert target is not None
        return between(model, source, target, weights, **options)
    assert edit.seconds is not None
    return outpaint(
        model, source, edit.seconds, edit.overlap, edit.crossfade, match_loudness=edit.match_loudness, **options
    )
