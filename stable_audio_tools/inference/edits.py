"""Other audio as the start: varied, made anew in places, continued, or mixed with another clip.

For any diffusion model; one that was not trained to inpaint keeps what it is given as `keeping` describes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stable_audio_tools.config import UserError
from stable_audio_tools.inference.audio import prepare_audio, unpack_audio
from stable_audio_tools.inference.audio_model import AudioModel
from stable_audio_tools.inference.generation import Audio
from stable_audio_tools.inference.model_facts import ModelFacts
from stable_audio_tools.inference.splicing import loudness_gain, splice
from stable_audio_tools.system.seeds import MAX_SEED

Mode = Literal["variation", "inpaint", "outpaint", "interpolate"]
MODES: tuple[Mode, ...] = get_args(Mode)
_SEARCH_SECONDS = 0.01  # half a period of 50 Hz: by how much a continuation may be shifted to be in phase
_OVERLAP_SHARE = 0.25  # of the window, where nothing is said


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
        return model.generate(init_audio=source, init_noise_level=edit.noise_level, **options).audio
    if edit.mode == "inpaint":
        fade: dict[str, Any] = {} if edit.crossfade is None else {"crossfade_seconds": edit.crossfade}
        return model.generate(inpaint_audio=source, inpaint=edit.spans, **fade, **options).audio
    if edit.mode == "interpolate":
        assert target is not None
        return model.interpolate(source, target, weights, **options).audio
    assert edit.seconds is not None
    return outpaint(
        model, source, edit.seconds, edit.overlap, edit.crossfade, match_loudness=edit.match_loudness, **options
    )


def outpaint(
    model: AudioModel,
    audio: Audio,
    seconds: float,
    overlap: float | None = None,
    crossfade: float | None = None,
    *,
    match_loudness: bool = True,
    seed: Sequence[int] = (0,),
    **options: Any,
) -> Tensor:
    """`audio` continued, window after window, to `seconds`: (b, c, n), an item per seed.

    Each window is given the last `overlap` seconds (None: a quarter of the window), made as loud as they are, shifted
    to be in phase, and cross-faded over the last `crossfade` seconds (None: half) of the overlap. What was there before
    stays as it is, but for the fade. The seed of a window is that of the one before it plus the number of items.
    """
    rate, window = model.sample_rate, model.facts.window
    if window is None:
        raise UserError("outpaint: the model's config tells no sample_size, the length of a window")
    shared = round(_OVERLAP_SHARE * window) if overlap is None else round(overlap * rate)
    given = _as_clips(model, audio, len(seed))
    if given.shape[-1] < shared:
        raise UserError(
            f"outpaint: the audio lasts {given.shape[-1] / rate:.2f} s, less than the overlap of "
            f"{shared / rate:.2f} s; give more audio or a smaller overlap"
        )
    if not 0 < shared < window:
        raise UserError(f"overlap: expected more than 0 and less than the window of {window / rate:.2f} s")
    fade = shared // 2 if crossfade is None else min(round(crossfade * rate), shared)
    made, wanted, seeds = list(given), round(seconds * rate), list(seed)
    if wanted <= given.shape[-1]:
        raise UserError(
            f"seconds: is {seconds:g}, the length in all, and the audio lasts {given.shape[-1] / rate:.2f} s already; "
            "ask for more"
        )
    anew = [(shared / rate, window / rate)]
    while min(clip.shape[-1] for clip in made) < wanted:
        tails = torch.stack([clip[:, -shared:] for clip in made])
        held = (rate, _prolonged(tails, window))
        windows = model.generate(inpaint_audio=held, inpaint=anew, keep_exact=False, seed=seeds, **options).audio
        for index, (tail, new) in enumerate(zip(tails, windows)):
            gain = loudness_gain(tail, new[:, :shared], rate) if match_loudness else 1.0
            made[index] = splice(made[index], gain * new, shared, fade, round(_SEARCH_SECONDS * rate))
        seeds = [(value + len(seeds)) % (MAX_SEED + 1) for value in seeds]
    return torch.stack([clip[:, :wanted] for clip in made])


def _as_clips(model: AudioModel, audio: Audio, count: int) -> Tensor:
    """(b, c, n) at the rate and with the channels that the model makes."""
    rate, samples = unpack_audio(audio, "audio")
    codec = getattr(model.module, "pretransform", None)
    channels = model.module.io_channels if codec is None else codec.io_channels
    length = round(samples.shape[-1] * model.sample_rate / rate)
    clips = prepare_audio(samples, rate, model.sample_rate, length, int(channels), "cpu")  # type: ignore[arg-type]
    return clips.expand(count, -1, -1) if len(clips) == 1 else clips


def _prolonged(tails: Tensor, length: int) -> Tensor:
    """Clips (b, c, n) run back and forth up to `length`: a codec then sees no silence after their end."""
    pieces, total, flipped = [tails], tails.shape[-1], tails.flip(-1)
    while total < length:
        pieces.append(flipped if len(pieces) % 2 else tails)
        total += tails.shape[-1]
    return torch.cat(pieces, dim=-1)[..., :length]
