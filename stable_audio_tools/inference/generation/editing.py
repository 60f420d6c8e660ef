"""Edits of audio of any length, window by window.

Variations, inpainting and interpolation keep the length. Any diffusion model works: one that was not trained to inpaint
keeps audio as `keeping` describes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.inference.generation.audio import prepare_audio
from stable_audio_tools.inference.generation.checks import file_seconds
from stable_audio_tools.inference.generation.engine import GenerationEngine
from stable_audio_tools.inference.generation.request import GenerationRequest, Hooks, Mode, Section, Span
from stable_audio_tools.inference.generation.splicing import loudness_gain, splice
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper

_SEARCH_SECONDS = 0.01  # half a period of 50 Hz: by how much a continuation may be shifted to be in phase
_OVERLAP_SHARE = 0.25  # of the window, by default
_FADE_SECONDS = 0.02  # from a new seam of a loop to the samples beside it
_SEED_STEP = 1_000  # between sections, whose windows count on from their own seed
_SEAM_SHARE = 0.125  # of the window, on either side of the seam of a loop


def generate(engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
    """Return audio (b, c, n), one item per request: edited by their `mode`, or one window without a mode."""
    requests = _spread_over_windows(engine, requests)
    mode = requests[0].mode
    if requests[0].sections is not None:
        audio = _compose(engine, requests, hooks)
    else:
        audio = engine.generate(requests, hooks) if mode is None else _EDITS[mode](engine, requests, hooks)
    return _close_loops(engine, requests, hooks, audio) if requests[0].loop else audio


def _spread_over_windows(
    engine: GenerationEngine, requests: Sequence[GenerationRequest]
) -> Sequence[GenerationRequest]:
    """Convert requests to inpaint audio that is longer than a window to the mode `inpaint`."""
    request, window = requests[0], engine.facts.window
    is_whole = request.seconds is None and request.sample_size is None and request.inpaint_bands is None
    if request.inpaint_audio is None or request.inpaint is None or window is None or not is_whole:
        return requests
    rate, samples = engine.read(request.inpaint_audio, "inpaint_audio")
    plain: dict[str, Any] = {"inpaint_audio": (rate, samples), "inpaint": request.inpaint}
    if samples.shape[-1] * engine.facts.sample_rate > window * rate:
        plain = {"inpaint_audio": None, "inpaint": None, "mode": "inpaint", "audio": (rate, samples)}
        plain |= {"spans": request.inpaint, "crossfade": request.crossfade_seconds}
    return [replace(each, **plain) for each in requests]


def _vary(engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
    """Vary audio of any length.

    Longer audio is varied window by window; each window continues a quarter of the previous one and is cross-faded over
    half of that.
    """
    clips, rate, window = _clips(engine, requests)
    total, shared = clips.shape[-1], round(_OVERLAP_SHARE * window)
    level = requests[0].noise_level
    generate = partial(_generate_window, engine, requests, hooks)
    made = list(generate(init_audio=(rate, clips[..., :window]), init_noise_level=level))
    while made[0].shape[-1] < total:
        start = made[0].shape[-1] - shared
        part = torch.nn.functional.pad(clips[..., start : start + window], (0, max(0, start + window - total)))
        tails = torch.stack([clip[:, -shared:] for clip in made])
        new = generate(
            init_audio=(rate, part),
            init_noise_level=level,
            inpaint_audio=(rate, torch.cat([tails, part[..., shared:]], dim=-1)),
            inpaint=[(shared / rate, window / rate)],
            keep_exact=False,
        )
        made = [splice(before, after, shared, shared // 2, 0) for before, after in zip(made, new)]
    return torch.stack(made)[..., :total]


def _inpaint(engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
    """Generate spans of the audio again; all other samples stay as they are.

    In longer audio each span is generated in a window of its surroundings.
    """
    clips, rate, window = _clips(engine, requests)
    spans, total = requests[0].spans or (), clips.shape[-1]
    _check_spans(spans, total / rate, window / rate)
    fade = requests[0].crossfade
    generate = partial(_generate_window, engine, requests, hooks, crossfade_seconds=fade)
    if total <= window:
        return generate(inpaint_audio=(rate, clips), inpaint=spans)[..., :total]
    made = clips.clone()
    for start, end in spans:
        first = min(max(round((start + end) / 2 * rate) - window // 2, 0), total - window)
        part = made[..., first : first + window]
        span = [(max(start - first / rate, 0.0), end - first / rate)]
        made[..., first : first + window] = generate(inpaint_audio=(rate, part), inpaint=span)
    return made


def _interpolate(engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
    """Interpolate between two clips; the result is as long as the longer one."""
    clips, rate, window = _clips(engine, requests[:1])
    target = replace(requests[0], audio=requests[0].to_audio)
    longest = max(clips.shape[-1], _clips(engine, [target])[0].shape[-1])
    if longest > window:
        raise UserError(
            f"a clip lasts {longest / rate:.2f} s, and the model works on {window / rate:.2f} s; give shorter ones"
        )
    return engine.generate(requests, hooks)[..., :longest]


def _outpaint(engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
    """Continue the audio, window by window, to `seconds`.

    Each window continues the last `overlap` seconds (None: a quarter of the window). It is scaled to their loudness,
    shifted to be in phase, and cross-faded over the last `crossfade` seconds (None: half) of the overlap. The audio
    before the fade stays as it is. The seed of each window is the previous seed plus the number of items.
    """
    request = requests[0]
    clips, rate, window = _clips(engine, requests)
    shared = round(_OVERLAP_SHARE * window) if request.overlap is None else round(request.overlap * rate)
    length, wanted = clips.shape[-1], round((request.seconds or 0) * rate)
    if length < shared:
        raise UserError(
            f"outpaint: the audio lasts {length / rate:.2f} s, less than the overlap of {shared / rate:.2f} s; "
            "give more audio or a smaller overlap"
        )
    if wanted <= length:
        raise UserError(
            f"seconds: is {request.seconds:g}, the total length, and the audio already lasts {length / rate:.2f} s; "
            "ask for more"
        )
    fade = shared // 2 if request.crossfade is None else min(round(request.crossfade * rate), shared)
    made = list(clips)
    while min(clip.shape[-1] for clip in made) < wanted:
        tails = torch.stack([clip[:, -shared:] for clip in made])
        windows = _generate_window(
            engine,
            requests,
            hooks,
            inpaint_audio=(rate, _prolonged(tails, window)),
            inpaint=[(shared / rate, window / rate)],
            keep_exact=False,
        )
        for index, (tail, new) in enumerate(zip(tails, windows)):
            gain = 1.0 if request.keep_level else loudness_gain(tail, new[:, :shared], rate)
            made[index] = splice(made[index], gain * new, shared, fade, round(_SEARCH_SECONDS * rate))
        requests = [replace(each, seed=((each.seed or 0) + len(requests)) % (MAX_SEED + 1)) for each in requests]
    return torch.stack([clip[:, :wanted] for clip in made])


def _compose(engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
    """Generate a piece section by section; each continues the audio before it under its own conditions."""
    rate, window = engine.facts.sample_rate, engine.facts.window
    assert window is not None, "checked before"
    made, end = torch.zeros(0), 0.0
    for number, section in enumerate(map(Section.read, requests[0].sections or ())):
        end += section.seconds
        parts = [
            replace(
                each,
                sections=None,
                loop=False,
                conditions={**each.conditions, **dict(section.conditions)},
                seed=((each.seed or 0) + number * _SEED_STEP) % (MAX_SEED + 1),
            )
            for each in requests
        ]
        if number == 0:
            made = _generate_window(engine, parts, hooks)[..., : round(end * rate)]
        if made.shape[-1] < round(end * rate):
            overlap = min(round(_OVERLAP_SHARE * window), made.shape[-1]) / rate
            longer = {"mode": "outpaint", "audio": (rate, made), "seconds": end, "overlap": overlap}
            made = _outpaint(engine, [replace(each, **longer) for each in parts], hooks)
    return made


def _close_loops(
    engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks, audio: Tensor
) -> Tensor:
    """Generate the end and the start of each item again, as they follow each other when the item is repeated.

    The length of a loop is that of its file. The seam is an eighth of the window on either side, at most a quarter of
    the loop; the model sees the repeated audio around it.
    """
    rate, window = engine.facts.sample_rate, engine.facts.window
    assert window is not None, "checked before"
    closed = audio.clone()
    for index, request in enumerate(requests):
        seconds = file_seconds(request)
        length = audio.shape[-1] if seconds is None else min(audio.shape[-1], round(seconds * rate))
        reach = min(round(_SEAM_SHARE * window), length // 4)
        places = torch.arange(-(window // 2), window - window // 2) % length
        spans = [
            (max(0, centre - reach) / rate, min(window, centre + reach) / rate)
            for centre in range(window // 2 % length, window + reach, length)
            if centre - reach < window
        ]
        repeated = closed[index][:, places]
        first = Section.read(request.sections[0]).conditions if request.sections else ()
        (new,) = _generate_window(
            engine,
            [request],
            hooks,
            loop=False,
            sections=None,
            conditions={**request.conditions, **dict(first)},
            inpaint_audio=(rate, repeated),
            inpaint=spans,
            init_audio=None,
            init_noise_level=None,
            keep_exact=True,
            crossfade_seconds=_FADE_SECONDS,
        )
        changed, middle = min(reach + round(_FADE_SECONDS * rate), length // 2), window // 2
        closed[index][:, length - changed : length] = new[:, middle - changed : middle]
        closed[index][:, :changed] = new[:, middle : middle + changed]
    return closed


_EDITS: dict[Mode, Callable[[GenerationEngine, Sequence[GenerationRequest], Hooks], Tensor]] = {
    "variation": _vary,
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "interpolate": _interpolate,
}


def _generate_window(
    engine: GenerationEngine, requests: Sequence[GenerationRequest], hooks: Hooks, **changes: Any
) -> Tensor:
    """Generate one window of each request, without its mode and with `changes`."""
    plain: dict[str, Any] = {"mode": None, "audio": None, "seconds": None, "sample_size": None}
    return engine.generate([replace(each, **plain, **changes) for each in requests], hooks)


def _check_spans(spans: Sequence[Span], seconds: float, window: float) -> None:
    for start, end in spans:
        if end > seconds + 0.01:  # written with two digits
            raise UserError(f"spans: {start:g}-{end:g} goes past the end of the audio, which lasts {seconds:.2f} s")
        if end - start > window:
            raise UserError(f"spans: {start:g}-{end:g} is longer than the {window:.2f} s that the model works on")


def _clips(engine: GenerationEngine, requests: Sequence[GenerationRequest]) -> tuple[Tensor, int, int]:
    """Return the audio (b, c, n) at the rate and channels of the model, the rate, and the samples of a window."""
    audio, window, module = requests[0].audio, engine.facts.window, cast(DiffusionWrapper, engine.module)
    assert audio is not None and window is not None, "checked before"
    rate, samples = engine.read(audio, "audio")
    codec = module.pretransform
    channels = module.io_channels if codec is None else codec.io_channels
    length = round(samples.shape[-1] * engine.facts.sample_rate / rate)
    clips = prepare_audio(samples, rate, engine.facts.sample_rate, length, channels, "cpu")
    clips = clips.expand(len(requests), -1, -1) if len(clips) == 1 else clips
    return clips, engine.facts.sample_rate, window


def _prolonged(tails: Tensor, length: int) -> Tensor:
    """Extend clips (b, c, n) to `length` by reflection, so that a codec sees no silence after their end."""
    pieces, total, flipped = [tails], tails.shape[-1], tails.flip(-1)
    while total < length:
        pieces.append(flipped if len(pieces) % 2 else tails)
        total += tails.shape[-1]
    return torch.cat(pieces, dim=-1)[..., :length]
