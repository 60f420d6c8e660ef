"""Audio of any length, worked on in windows of the length that the model makes; what is not asked for stays as long."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.inference.generation.audio import prepare_audio, unpack_audio
from stable_audio_tools.inference.generation.diffusion import Audio
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.splicing import loudness_gain, splice

_SEARCH_SECONDS = 0.01  # half a period of 50 Hz: by how much a continuation may be shifted to be in phase
_OVERLAP_SHARE = 0.25  # of the window, where nothing is said


def vary(
    model: AudioModel, audio: Audio, noise_level: float | None = None, *, seed: Sequence[int] = (0,), **options: Any
) -> Tensor:
    """Other takes of `audio`, as long as it: (b, c, n), an item per seed.

    Longer audio goes window after window; each is given a quarter of the one before, and cross-faded over half of that.
    """
    rate, window = model.sample_rate, _window_of(model)
    clips, options = _as_clips(model, audio, len(seed)), _for_each(seed, options)
    total, shared = clips.shape[-1], round(_OVERLAP_SHARE * window)
    options |= {"init_noise_level": noise_level, "seed": list(seed)}
    made = list(model.generate(init_audio=(rate, clips[..., :window]), **options).audio)
    anew = [(shared / rate, window / rate)]
    while made[0].shape[-1] < total:
        start = made[0].shape[-1] - shared
        part = torch.nn.functional.pad(clips[..., start : start + window], (0, max(0, start + window - total)))
        tails = torch.stack([clip[:, -shared:] for clip in made])
        held = (rate, torch.cat([tails, part[..., shared:]], dim=-1))
        more: dict[str, Any] = {"inpaint_audio": held, "inpaint": anew, "keep_exact": False}
        new = model.generate(init_audio=(rate, part), **more, **options).audio
        made = [splice(before, after, shared, shared // 2, 0) for before, after in zip(made, new)]
    return torch.stack(made)[..., :total]


def inpaint(
    model: AudioModel,
    audio: Audio,
    spans: Sequence[tuple[float, float]],
    crossfade: float | None = None,
    *,
    seed: Sequence[int] = (0,),
    **options: Any,
) -> Tensor:
    """`audio` with `spans` of it, in seconds, made anew: (b, c, n), an item per seed; the rest stays sample by sample.

    In longer audio each span is heard in a window of its surroundings.
    """
    rate, window = model.sample_rate, _window_of(model)
    clips, options = _as_clips(model, audio, len(seed)), _for_each(seed, options)
    total = clips.shape[-1]
    _check_spans(spans, total / rate, window / rate)
    fade: dict[str, Any] = {} if crossfade is None else {"crossfade_seconds": crossfade}
    options |= {"seed": list(seed), **fade}
    if total <= window:
        return model.generate(inpaint_audio=(rate, clips), inpaint=spans, **options).audio[..., :total]
    made = clips.clone()
    for start, end in spans:
        first = min(max(round((start + end) / 2 * rate) - window // 2, 0), total - window)
        part = made[..., first : first + window]
        anew = [(max(start - first / rate, 0.0), end - first / rate)]
        made[..., first : first + window] = model.generate(inpaint_audio=(rate, part), inpaint=anew, **options).audio
    return made


def between(model: AudioModel, audio: Audio, target: Audio, weights: Sequence[float], **options: Any) -> Tensor:
    """What lies between two clips, as long as the longer one: (b, c, n), an item per weight."""
    rate, window = model.sample_rate, _window_of(model)
    lengths = [_as_clips(model, clip, 1).shape[-1] for clip in (audio, target)]
    if max(lengths) > window:
        raise UserError(
            f"a clip lasts {max(lengths) / rate:.2f} s, and the model works on {window / rate:.2f} s; give shorter ones"
        )
    return model.interpolate(audio, target, weights, **options).audio[..., : max(lengths)]


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
    rate, window = model.sample_rate, _window_of(model)
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
    options = _for_each(seed, options)
    while min(clip.shape[-1] for clip in made) < wanted:
        tails = torch.stack([clip[:, -shared:] for clip in made])
        held = (rate, _prolonged(tails, window))
        windows = model.generate(inpaint_audio=held, inpaint=anew, keep_exact=False, seed=seeds, **options).audio
        for index, (tail, new) in enumerate(zip(tails, windows)):
            gain = loudness_gain(tail, new[:, :shared], rate) if match_loudness else 1.0
            made[index] = splice(made[index], gain * new, shared, fade, round(_SEARCH_SECONDS * rate))
        seeds = [(value + len(seeds)) % (MAX_SEED + 1) for value in seeds]
    return torch.stack([clip[:, :wanted] for clip in made])


def _window_of(model: AudioModel) -> int:
    if model.facts.window is None:
        raise UserError("the model's config tells no sample_size, the length of a window")
    return model.facts.window


def _for_each(seed: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """As many items as seeds, where no list of conditions tells how many there are."""
    return dict(options) if options.get("conditions") else {"num_samples": len(seed), **options}


def _check_spans(spans: Sequence[tuple[float, float]], seconds: float, window: float) -> None:
    for start, end in spans:
        if end > seconds + 0.01:  # written with two digits
            raise UserError(f"spans: {start:g}-{end:g} goes past the end of the audio, which lasts {seconds:.2f} s")
        if end - start > window:
            raise UserError(f"spans: {start:g}-{end:g} is longer than the {window:.2f} s that the model works on")


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
