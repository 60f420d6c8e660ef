"""The published functions that generate audio with diffusion models.

Beyond their signatures they take the keywords of a `GenerationRequest` that concern sampling, guidance and memory, and
those of `Hooks`. `seed` may list one seed per item: an item then is what it would be alone. The random state and the
settings of the process are the same after a call as before it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.generations import Generation
from stable_audio_tools.inference.generation.audio import batch_mask, keep_region, resize_mask
from stable_audio_tools.inference.generation.by_length import generate_by_length, read_request, version_of
from stable_audio_tools.inference.generation.decoding import parameter_dtype
from stable_audio_tools.inference.generation.request import HOOKS, OPTIONS, GenerationRequest, Hooks, read_hooks
from stable_audio_tools.inference.generation.run import GenerationRun, Kept, MakeDenoiser, select
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.guidance import Denoiser
from stable_audio_tools.models.diffusion.unconditional import DiffusionModelWrapper
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper

logger = logging.getLogger(__name__)

Audio = tuple[int, Tensor]  # sample rate, (c, n)
Conditions = dict[str, Condition]
Metadata = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_SAMPLING = ("sampler_type", "schedule", "sigma_min", "sigma_max", "rho", "eta", "precision", "allow_tf32")
_MEMORY = ("offload", "decode_frames", "decode_overlap")
_UNGUIDED = (*_SAMPLING, *_MEMORY)
_GUIDED = (*_UNGUIDED, *(name for name, about in OPTIONS.items() if about.suits == "guided diffusion"))


@dataclass(frozen=True)
class DiffusionInputs:
    """Conditions, as metadata or as tensors of a conditioner, and audio to start from or to keep.

    `is_trained`: the model was trained to inpaint; any other keeps audio as `keeping` describes.
    """

    conditioning: Metadata | None = None
    conditioning_tensors: Mapping[str, Any] | None = None
    negative_conditioning: Metadata | None = None
    negative_conditioning_tensors: Mapping[str, Any] | None = None
    init_audio: Audio | None = None
    init_noise_level: float = 1.0
    inpaint_audio: Audio | None = None
    inpaint_mask: Tensor | None = None  # (samples,) or (b, samples), 1 keep and 0 generate
    inpaint_bands: Tensor | None = None  # (bands, frames) of a spectrogram
    is_trained: bool = False
    keep_exact: bool = False
    crossfade_seconds: float = 0.02


@torch.no_grad()
def generate_diffusion_uncond(
    model: DiffusionModelWrapper,
    steps: int = 250,
    batch_size: int = 1,
    sample_size: int = 2097152,
    seed: int | Sequence[int] = -1,
    device: str | torch.device = "cuda",
    init_audio: Audio | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    *,
    inpaint_audio: Audio | None = None,
    inpaint_mask: Tensor | None = None,
    inpaint_bands: Tensor | None = None,
    keep_exact: bool = False,
    crossfade_seconds: float = 0.02,
    **sampler_kwargs: Any,
) -> Tensor:
    """Return audio (b, c, n), or latents (b, d, t), of an unconditional model; see `generate_diffusion_cond`."""
    request, hooks = read_options(sampler_kwargs, _UNGUIDED)
    inputs = DiffusionInputs(
        init_audio=init_audio,
        init_noise_level=init_noise_level,
        inpaint_audio=inpaint_audio,
        inpaint_mask=inpaint_mask,
        inpaint_bands=inpaint_bands,
        keep_exact=keep_exact,
        crossfade_seconds=crossfade_seconds,
    )
    _check_mask(inputs, return_latents)
    run = GenerationRun(model, steps, batch_size, sample_size, seed, device, request, hooks)
    return run_diffusion(run, inputs, return_latents=return_latents)


@torch.no_grad()
def generate_diffusion_cond(
    model: ConditionedDiffusionModelWrapper,
    steps: int = 250,
    cfg_scale: float = 6,
    conditioning: Metadata | None = None,
    conditioning_tensors: Mapping[str, Any] | None = None,
    negative_conditioning: Metadata | None = None,
    negative_conditioning_tensors: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    sample_size: int = 2097152,
    sample_rate: int = 48000,
    seed: int | Sequence[int] = -1,
    device: str | torch.device = "cuda",
    init_audio: Audio | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    *,
    inpaint_audio: Audio | None = None,
    inpaint_mask: Tensor | None = None,
    inpaint_bands: Tensor | None = None,
    keep_exact: bool = False,
    crossfade_seconds: float = 0.02,
    **sampler_kwargs: Any,
) -> Tensor:
    """Return audio (b, c, n), or latents (b, d, t), for conditions.

    `conditioning` is metadata, one dict for all items or one per item; `init_audio` is varied: the more, the higher
    `init_noise_level` (sigma / alpha for k-diffusion's samplers, else up to 1). `sample_rate` has no effect: the model
    knows its own. `inpaint_audio` is kept where `inpaint_mask` is 1 by a model that was not trained for it (`keeping`);
    `inpaint_bands` (bands, frames) is a mask of a spectrogram. The rest as in `generate_diffusion_cond_inpaint`.
    """
    inputs = DiffusionInputs(
        conditioning,
        conditioning_tensors,
        negative_conditioning,
        negative_conditioning_tensors,
        init_audio,
        init_noise_level,
        inpaint_audio,
        inpaint_mask,
        inpaint_bands,
        keep_exact=keep_exact,
        crossfade_seconds=crossfade_seconds,
    )
    version = version_of(model, sampler_kwargs)
    if version != "0.0.19" and inpaint_audio is None:
        call = (steps, cfg_scale, batch_size, sample_size, seed, device, return_latents)
        return _generate_by_length(model, version, inputs, call, sampler_kwargs)
    request, hooks = read_options(sampler_kwargs, _GUIDED)
    _check_mask(inputs, return_latents)
    batch_size = batch_of(batch_size, conditioning)
    run = GenerationRun(model, steps, batch_size, sample_size, seed, device, request, hooks)
    return run_diffusion(run, inputs, cfg_scale, return_latents)


@torch.no_grad()
def generate_diffusion_cond_inpaint(
    model: ConditionedDiffusionModelWrapper,
    steps: int = 250,
    cfg_scale: float = 6,
    conditioning: Metadata | None = None,
    conditioning_tensors: Mapping[str, Any] | None = None,
    negative_conditioning: Metadata | None = None,
    negative_conditioning_tensors: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    sample_size: int = 2097152,
    seed: int | Sequence[int] = -1,
    device: str | torch.device = "cuda",
    init_audio: Audio | None = None,
    init_noise_level: float = 1.0,
    inpaint_audio: Audio | None = None,
    inpaint_mask: Tensor | None = None,
    return_latents: bool = False,
    *,
    keep_exact: bool = False,
    crossfade_seconds: float = 0.02,
    **sampler_kwargs: Any,
) -> Tensor:
    """As `generate_diffusion_cond`, and `inpaint_audio` is kept where `inpaint_mask` (b, sample_size) is 1.

    Kept audio passes through the codec, unless `keep_exact` puts the samples themselves back, with a cross-fade of that
    many seconds on the kept side of each seam. Without `inpaint_audio` everything is generated.
    """
    inputs = DiffusionInputs(
        conditioning,
        conditioning_tensors,
        negative_conditioning,
        negative_conditioning_tensors,
        init_audio,
        init_noise_level,
        inpaint_audio,
        inpaint_mask,
        is_trained=True,
        keep_exact=keep_exact,
        crossfade_seconds=crossfade_seconds,
    )
    lists = (model.input_concat_ids, model.local_add_cond_ids, model.cross_attn_cond_ids, model.global_cond_ids)
    routed = [id for ids in (*lists, model.prepend_cond_ids) for id in ids]
    if inpaint_audio is not None and "inpaint_masked_input" not in routed:
        raise ValueError(
            "this model cannot inpaint: its config routes no 'inpaint_masked_input' to the network; "
            "generate_diffusion_cond keeps audio without that"
        )
    version = version_of(model, sampler_kwargs)
    if version != "0.0.19":
        call = (steps, cfg_scale, batch_size, sample_size, seed, device, return_latents)
        return _generate_by_length(model, version, inputs, call, sampler_kwargs)
    request, hooks = read_options(sampler_kwargs, _GUIDED)
    _check_mask(inputs, return_latents)
    batch_size = batch_of(batch_size, conditioning)
    run = GenerationRun(model, steps, batch_size, sample_size, seed, device, request, hooks)
    return run_diffusion(run, inputs, cfg_scale, return_latents)


def _generate_by_length(
    model: ConditionedDiffusionModelWrapper,
    version: Generation,
    inputs: DiffusionInputs,
    call: tuple[int, float, int, int, int | Sequence[int], str | torch.device, bool],
    keywords: Mapping[str, Any],
) -> Tensor:
    """The call as a generation after 0.0.19 has it; `call` holds steps, scale, batch and sample size, seed, device."""
    names = ("steps", "cfg_scale", "batch_size", "sample_size", "seed", "device", "return_latents")
    given = {name: value for name, value in vars(inputs).items() if name not in ("inpaint_bands", "is_trained")}
    request, options = read_request({**given, **dict(zip(names, call)), **keywords, "inpaint": inputs.is_trained})
    return generate_by_length(model, version, request, options)


def run_diffusion(
    run: GenerationRun, inputs: DiffusionInputs, cfg_scale: float | None = None, return_latents: bool = False
) -> Tensor:
    """Return audio (b, c, n), or latents (b, d, t); without `cfg_scale`, of an unconditional model."""
    mask, model = _mask(run, inputs.inpaint_mask), run.model
    schedule: str | None = None
    with run.settings():
        positive: Conditions | None = None
        negative: Conditions | None = None
        if cfg_scale is not None:
            given = run.conditions(inputs.conditioning, inputs.conditioning_tensors, "conditioning")
            positive = required_conditions(given, model)
            negative = run.conditions(
                inputs.negative_conditioning, inputs.negative_conditioning_tensors, "negative_conditioning"
            )
        init = run.encoded(run.audio(inputs.init_audio, "init_audio"))
        original = run.audio(inputs.inpaint_audio, "inpaint_audio")
        keep: Kept | None = None
        if inputs.is_trained and positive is not None:
            inpainting = _inpainting_conditions(run, run.encoded(original), mask)
            positive, negative = positive | inpainting, None if negative is None else negative | inpainting
        else:
            keep = _data_to_keep(run, original, mask, inputs.inpaint_bands)
        if positive is None or cfg_scale is None:
            denoiser = cast(DiffusionModelWrapper, model).denoiser
            denoisers: MakeDenoiser = lambda _: denoiser()  # noqa: E731
        else:
            # The only published combination of sampler and distribution shift.
            shifts = not inputs.is_trained and run.request.sampler_type == "rk4" and model.dist_shift is not None
            schedule = "shifted" if shifts else None
            conditional = cast(ConditionedDiffusionModelWrapper, model)
            denoisers = make_denoisers(conditional, positive, negative, cfg_scale, run.request)
        latents = run.sample(denoisers, init, inputs.init_noise_level, schedule, keep=keep)
        if return_latents:
            return latents
        audio = run.decoded(latents)
    if original is None or mask is None or not inputs.keep_exact:
        return audio
    fade = round(inputs.crossfade_seconds * model.sample_rate)
    return keep_region(audio, original, resize_mask(mask, run.sample_size), fade)


def batch_of(batch_size: int, conditioning: Metadata | None) -> int:
    """Return the number of items: of the conditions if `batch_size` is 1 and there are several."""
    if batch_size == 1 and isinstance(conditioning, Sequence) and len(conditioning) > 1:
        return len(conditioning)
    return batch_size


def read_options(keywords: Mapping[str, Any], known: Sequence[str]) -> tuple[GenerationRequest, Hooks]:
    """Keywords of the published functions as a request and its hooks; an unknown one is named in a warning."""
    options = {name: value for name, value in keywords.items() if name in known or name in HOOKS}
    for name in keywords:
        if name not in options:
            logger.warning("the option %r has no effect; %s", name, nearest(name, [*known, *HOOKS]))
    values, hooks = read_hooks(options)
    return GenerationRequest(**values), hooks


def make_denoisers(
    model: ConditionedDiffusionModelWrapper,
    positive: Conditions,
    negative: Conditions | None,
    cfg_scale: float,
    request: GenerationRequest,
) -> MakeDenoiser:
    """Return a function that creates what samplers call, under these conditions."""
    dtype = parameter_dtype(model.model, torch.float32)
    inputs = model.get_conditioning_inputs(positive)
    negative_inputs = {} if negative is None else model.get_conditioning_inputs(negative, negative=True)

    def make(items: slice) -> Denoiser:
        return model.denoiser(
            select(inputs, items, dtype),
            select(negative_inputs, items, dtype),
            cfg_scale=cfg_scale,
            cfg_interval=(0.0, 1.0) if request.cfg_interval is None else request.cfg_interval,
            scale_phi=request.scale_phi,
            batch_cfg=request.batch_cfg is not False,
        )

    return make


def required_conditions(conditions: Conditions | None, model: DiffusionWrapper) -> Conditions:
    """Return the conditions; raise if they are missing for a model with a conditioner."""
    if conditions is not None:
        return conditions
    if model.conditioner is None:
        return {}
    raise ValueError("give conditioning (metadata, one dict per item) or conditioning_tensors")


def _check_mask(inputs: DiffusionInputs, return_latents: bool) -> None:
    if inputs.inpaint_audio is not None and inputs.inpaint_mask is None:
        logger.warning("inpaint_audio has no effect without inpaint_mask, which says what to keep")
    if inputs.keep_exact and not return_latents and (inputs.inpaint_audio is None or inputs.inpaint_mask is None):
        raise ValueError("keep_exact needs inpaint_audio and inpaint_mask")


def _mask(run: GenerationRun, given: Tensor | None) -> Tensor | None:
    """Return the mask (b, 1, samples) or (b, 1, frames), 1 keep and 0 generate."""
    if given is None:
        return None
    mask = batch_mask(given, run.batch_size)
    if mask.shape[-1] not in (run.sample_size, run.frames):
        raise ValueError(
            f"inpaint_mask is {mask.shape[-1]} samples long, and sample_size is {run.sample_size}; make them equal"
        )
    return mask.to(run.device)


def _data_to_keep(
    run: GenerationRun, original: Tensor | None, mask: Tensor | None, bands: Tensor | None
) -> Kept | None:
    """Return the data to keep for a model that was not trained to inpaint; `bands` (d, t) masks a spectrogram."""
    if original is None or (mask is None and bands is None):
        return None
    data = run.encoded(original)
    assert data is not None
    if bands is not None:
        channels = getattr(run.model.model, "image_channels", 1)
        # A cell is generated where any part of it is.
        rows = 1 - torch.nn.functional.adaptive_max_pool2d(
            1 - bands.to(data)[None], (data.shape[1] // channels, data.shape[2])
        )
        return Kept(data, rows.repeat(1, channels, 1))
    assert mask is not None
    return Kept(data, resize_mask(mask, run.frames))


def _inpainting_conditions(run: GenerationRun, kept: Tensor | None, mask: Tensor | None) -> Conditions:
    """Return the mask in latent frames and the latents that it keeps, as conditions."""
    shape = (run.batch_size, run.model.io_channels, run.frames)
    if mask is None:
        mask = torch.zeros(run.batch_size, 1, run.frames, device=run.device)
    frames = resize_mask(mask, run.frames)
    masked = torch.zeros(shape, device=run.device) if kept is None else kept * frames
    return {"inpaint_mask": Condition(frames, None), "inpaint_masked_input": Condition(masked, None)}
