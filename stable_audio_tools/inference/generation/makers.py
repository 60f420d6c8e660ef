"""Audio out of each type of model, for one checked request."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.devices import autocast, parse_dtype
from stable_audio_tools.inference.generation.audio import prepare_audio
from stable_audio_tools.inference.generation.diffusion import (
    Audio,
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
)
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.options import GuidanceOptions, SamplingOptions
from stable_audio_tools.inference.generation.reconstruction import reconstruct
from stable_audio_tools.inference.generation.run import join_conditions
from stable_audio_tools.inference.sampling.randomness import SeededNoise
from stable_audio_tools.inference.sampling.samplers import find_sampler
from stable_audio_tools.inference.sampling.watching import Cancelled, progress_of
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.precision import hold_in

Span = tuple[float, float]  # seconds


@dataclass(frozen=True)
class Job:
    """What one call makes: a batch, one item per seed, `samples` samples of audio each."""

    seeds: Sequence[int]
    samples: int | None
    device: torch.device
    precision: str = "float32"
    conditions: list[dict[str, Any]] = field(default_factory=list)
    negative: list[dict[str, Any]] | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    init_audio: Audio | None = None
    init_noise_level: float | None = None
    inpaint_audio: Audio | None = None
    inpaint: Sequence[Span] | None = None  # what is made anew; None: all that comes after inpaint_audio
    options: Mapping[str, Any] = field(default_factory=dict)


def sampling_settings(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the generate functions: those given, and for the rest those recommended."""
    recommended = facts.recommended
    assert recommended is not None and facts.objective is not None
    settings: dict[str, Any] = {"sampler_type": recommended.sampler_type} | {
        name: value for name, value in given.items() if value is not None
    }
    if find_sampler(settings["sampler_type"], facts.objective).starts_by_ratio:
        settings = {"sigma_min": recommended.sigma_min, "sigma_max": recommended.sigma_max} | settings
    return settings


def make_conditional(model: Any, job: Job, facts: ModelFacts) -> Tensor:
    """Audio (b, c, n) of a conditional diffusion model."""
    common = _diffusion_arguments(job, facts)
    common |= {
        "cfg_scale": facts.recommended.cfg_scale if job.cfg_scale is None and facts.recommended else job.cfg_scale,
        "conditioning": job.conditions if model.conditioner is not None else None,
        "negative_conditioning": job.negative,
    }
    if not facts.inpaints:
        return generate_diffusion_cond(model, **{**common, **_kept_arguments(job, facts)})
    if job.inpaint_audio is None:
        return generate_diffusion_cond_inpaint(model, **common)
    return generate_diffusion_cond_inpaint(model, **{**common, **_kept_arguments(job, facts)})


def make_unconditional(model: Any, job: Job, facts: ModelFacts) -> Tensor:
    """Audio (b, c, n) of an unconditional diffusion model."""
    return generate_diffusion_uncond(model, **{**_diffusion_arguments(job, facts), **_kept_arguments(job, facts)})


def make_reconstruction(model: Any, job: Job, facts: ModelFacts) -> Tensor:
    """`init_audio` through an autoencoder and back, once per seed."""
    _refuse_audio(job, "inpaint_audio", "an autoencoder cannot inpaint")
    if job.init_audio is None:
        raise ValueError("an autoencoder makes nothing by itself; give the audio to pass through it as init_audio")
    rate, audio = job.init_audio
    decoding: dict[str, Any] = {} if job.steps is None else {"steps": job.steps}
    options = {"progress": True, **decoding, **job.options}

    def pass_through(item: int = 0) -> Tensor:
        with _precision(job):
            return reconstruct(model, audio, rate, device=job.device, **options)[None]

    noise = SeededNoise(job.seeds, job.device)
    made = noise.feed(pass_through, pass_through, torch.cat)
    return made.expand(len(job.seeds), -1, -1)  # seeds that drew nothing share one pass


def make_codes(model: Any, job: Job, facts: ModelFacts) -> Tensor:
    """Audio (b, c, n) of a language model over codes; `init_audio` is continued."""
    _refuse_audio(job, "inpaint_audio", "a language model cannot inpaint; it continues init_audio")
    codec = model.pretransform
    assert job.samples is not None
    frames = math.ceil(job.samples / codec.downsampling_ratio)
    options = {name: value for name, value in job.options.items() if name not in ("progress", "cancel")}
    count = len(job.seeds)
    noise = SeededNoise(job.seeds, job.device)

    def encode(items: list[dict[str, Any]] | None) -> dict[str, Condition] | None:
        if items is None or model.conditioner is None:
            return None
        return noise.feed(
            lambda: model.conditioner(items, job.device),
            lambda index: model.conditioner([items[index]], job.device),
            join_conditions,
        )

    with progress_of(job.options.get("progress", True), frames * count) as progress:
        codes = model.generate(
            frames,
            batch_size=count,
            init_data=None if job.init_audio is None else _codes_of(model, job).expand(count, -1, -1),
            conditioning_tensors=encode(job.conditions),
            negative_conditioning_tensors=encode(job.negative),
            cfg_scale=1.0 if job.cfg_scale is None else job.cfg_scale,
            callback=_step_callback(job, frames * count, progress),
            generator=[torch.Generator(job.device).manual_seed(seed) for seed in job.seeds],
            **options,
        )
    audio: Tensor = codec.decode_tokens(codes)
    return audio


Maker = Callable[[Any, Job, ModelFacts], Tensor]
_DIFFUSION_OPTIONS = tuple(entry.name for entry in fields(SamplingOptions))
_GUIDED_OPTIONS = (*_DIFFUSION_OPTIONS, *(entry.name for entry in fields(GuidanceOptions)))
_KEEPING = ("keep_exact", "crossfade_seconds")
_FRAMED = ("progress", "cancel", "frame_seconds", "overlap_rate", "batch_size")
MAKERS: dict[str, tuple[Maker, tuple[str, ...]]] = {  # by model type, with the options that each takes
    "diffusion_cond": (make_conditional, (*_GUIDED_OPTIONS, *_KEEPING, "inpaint_bands")),
    "diffusion_cond_inpaint": (make_conditional, (*_GUIDED_OPTIONS, *_KEEPING)),
    "diffusion_uncond": (make_unconditional, (*_DIFFUSION_OPTIONS, *_KEEPING, "inpaint_bands")),
    "autoencoder": (make_reconstruction, _FRAMED),
    "diffusion_autoencoder": (make_reconstruction, _FRAMED),
    "lm": (make_codes, ("progress", "cancel", "top_k", "top_p", "temp", "use_cache")),
}


def set_precision(model: nn.Module, facts: ModelFacts, precision: str) -> None:
    """Hold the network of a diffusion or language model in the precision of its runs; nothing is converted later.

    In float16 so is the codec of a diffusion model. In bfloat16 codecs decode to noise, and stay in float32. An
    autoencoder alone keeps what it is judged by, and runs under autocast.
    """
    dtype = parse_dtype(precision)
    if dtype is torch.float32:
        return
    names = ("lm",) if facts.model_type == "lm" else ("model",) if facts.objective is not None else ()
    if dtype is torch.float16 and facts.objective is not None:
        names = (*names, "pretransform")
    for part in (getattr(model, name, None) for name in names):
        if isinstance(part, nn.Module):
            hold_in(part, dtype)


def _diffusion_arguments(job: Job, facts: ModelFacts) -> dict[str, Any]:
    recommended = facts.recommended
    assert recommended is not None and facts.objective is not None
    settings = sampling_settings(facts, job.options)
    if job.init_audio is not None:
        # Half of the way to noise, whatever the sampler: sigma / alpha is 1 there for v, and t is 0.5.
        usual = 1.0 if find_sampler(settings["sampler_type"], facts.objective).starts_by_ratio else 0.5
        level = usual if job.init_noise_level is None else job.init_noise_level
        settings["init_noise_level"] = level
        if "sigma_min" in settings and job.options.get("sigma_min") is None:  # a gentle variation begins below it
            settings["sigma_min"] = min(settings["sigma_min"], level / 2)
    return {
        "steps": recommended.steps if job.steps is None else job.steps,
        "batch_size": len(job.seeds),
        "sample_size": job.samples,
        "seed": list(job.seeds),
        "device": job.device,
        "init_audio": job.init_audio,
        **settings,
    }


def _kept_arguments(job: Job, facts: ModelFacts) -> dict[str, Any]:
    """Audio to be kept, and where."""
    if job.inpaint_audio is None:
        return {}
    bands = job.options.get("inpaint_bands")
    if bands is not None:
        _check_bands(bands, job)
    return {
        "inpaint_audio": job.inpaint_audio,
        "inpaint_mask": _mask_of(job, facts.sample_rate) if bands is None else _untouched(bands, job),
        "keep_exact": job.options.get("keep_exact", True),
    }


def _check_bands(bands: Tensor, job: Job) -> None:
    if job.inpaint is not None:
        raise ValueError("inpaint_bands: inpaint is given too; keep one of them")
    if bands.ndim != 2 or not bool(((bands >= 0) & (bands <= 1)).all()):
        raise ValueError(f"inpaint_bands: expected 0 (anew) to 1 (kept) as (bands, frames), got {tuple(bands.shape)}")
    if bool((bands == 1).all()):
        raise ValueError("inpaint_bands: nothing is to be made anew; set 0 where something is")


def _untouched(bands: Tensor, job: Job) -> Tensor:
    """(1, samples), 1 where every band (d, t) is kept."""
    assert job.samples is not None
    frames = bands.amin(0)[None, None]
    return torch.nn.functional.interpolate(frames, size=job.samples, mode="nearest")[0]


def _refuse_audio(job: Job, name: str, why: str) -> None:
    if getattr(job, name) is not None:
        raise ValueError(f"{name}: {why}")


def _mask_of(job: Job, sample_rate: int) -> Tensor:
    """(1, samples), 1 keep and 0 generate."""
    assert job.inpaint_audio is not None and job.samples is not None
    rate, audio = job.inpaint_audio
    seconds = audio.shape[-1] / rate
    mask = torch.zeros(1, job.samples)
    mask[:, : round(seconds * sample_rate)] = 1
    for start, end in job.inpaint or ():
        if not 0 <= start < end:
            raise ValueError(f"inpaint: a span is (start, end) in seconds with 0 <= start < end, got ({start}, {end})")
        mask[:, round(start * sample_rate) : round(end * sample_rate)] = 0
    if mask.all():
        raise ValueError(
            f"inpaint: nothing is left to generate; the audio of {seconds:.2f} s fills the whole length, so name the "
            "spans to make anew, or ask for more seconds"
        )
    return mask


def _codes_of(model: Any, job: Job) -> Tensor:
    """Codes (1, q, t) of the audio to be continued, whole frames of it."""
    assert job.init_audio is not None
    codec = model.pretransform
    rate, audio = job.init_audio
    length = round(audio.shape[-1] * model.sample_rate / rate) // codec.downsampling_ratio * codec.downsampling_ratio
    if length == 0:
        raise ValueError("init_audio: shorter than one frame of codes; give more")
    prepared = prepare_audio(audio, rate, model.sample_rate, length, codec.io_channels, job.device)
    codes: Tensor = codec.tokenize(prepared)
    return codes


def _step_callback(job: Job, total: int, progress: Any) -> Callable[[int, int], None]:
    """Report frames done of `total`; steps are more than the frames of an item, since codebooks follow each other."""
    cancel = job.options.get("cancel")

    def step(done: int, steps: int) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("the generation was cancelled")
        if progress is not None:
            progress(min(total, round(total * done / steps)), total)

    return step


def _precision(job: Job) -> AbstractContextManager[Any]:
    dtype = parse_dtype(job.precision)
    return nullcontext() if dtype is torch.float32 else autocast(job.device, dtype)
