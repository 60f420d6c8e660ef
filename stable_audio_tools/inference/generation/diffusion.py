"""The published functions that generate audio with diffusion models.

Beyond their signatures they take the keywords of `options.SamplingOptions` and, with conditions,
`options.GuidanceOptions`. `seed` may list one seed per item: an item then is what it would be alone. The random state
and the settings of the process are the same after a call as before it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.inference.generation.audio import batch_mask, keep_region, resize_mask
from stable_audio_tools.inference.generation.decoding import parameter_dtype
from stable_audio_tools.inference.generation.options import GuidanceOptions, SamplingOptions, split_options
from stable_audio_tools.inference.generation.run import GenerationRun, Kept, MakeDenoiser, select
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.diffusion.guidance import Denoiser

logger = logging.getLogger(__name__)

Audio = tuple[int, Tensor]  # sample rate, (c, n)
Conditions = dict[str, Condition]
Metadata = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@torch.no_grad()
def generate_diffusion_uncond(
    model: Any,
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
    """Audio (b, c, n), or latents (b, d, t), out of an unconditional model; see `generate_diffusion_cond`."""
    (options,) = split_options(sampler_kwargs, SamplingOptions)
    _check_mask(inpaint_audio, inpaint_mask, keep_exact and not return_latents)
    run = GenerationRun(model, steps, batch_size, sample_size, seed, device, options)
    mask = _mask(run, inpaint_mask)
    with run.settings():
        init = run.encoded(run.audio(init_audio, "init_audio"))
        original = run.audio(inpaint_audio, "inpaint_audio")
        keep = _kept(run, original, mask, inpaint_bands)
        latents = run.sample(lambda _: model.denoiser(), init, init_noise_level, keep=keep)
        if return_latents:
            return latents
        audio = run.decoded(latents)
    return _put_back(audio, original, mask if keep_exact else None, run, crossfade_seconds)


@torch.no_grad()
def generate_diffusion_cond(
    model: Any,
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
    """Audio (b, c, n), or latents (b, d, t), for conditions.

    `conditioning` is metadata, one dict for all items or one per item; `init_audio` is varied: the more, the higher
    `init_noise_level` (sigma / alpha for k-diffusion's samplers, else up to 1). `sample_rate` has no effect: the model
    knows its own. `inpaint_audio` is kept where `inpaint_mask` is 1 by a model that was not trained for it (`keeping`);
    of a spectrogram, `inpaint_bands` (bands, frames) tells so for each band. The rest as in
    `generate_diffusion_cond_inpaint`.
    """
    options, guidance = split_options(sampler_kwargs, SamplingOptions, GuidanceOptions)
    _check_mask(inpaint_audio, inpaint_mask, keep_exact and not return_latents)
    run = GenerationRun(model, steps, batch_size, sample_size, seed, device, options)
    mask = _mask(run, inpaint_mask)
    with run.settings():
        positive = required_conditions(run.conditions(conditioning, conditioning_tensors, "conditioning"), model)
        negative = run.conditions(negative_conditioning, negative_conditioning_tensors, "negative_conditioning")
        init = run.encoded(run.audio(init_audio, "init_audio"))
        original = run.audio(inpaint_audio, "inpaint_audio")
        keep = _kept(run, original, mask, inpaint_bands)
        # The only published combination of sampler and distribution shift.
        shifts = options.sampler_type == "rk4" and model.dist_shift is not None
        denoisers = make_denoisers(model, positive, negative, cfg_scale, guidance)
        latents = run.sample(denoisers, init, init_noise_level, "shifted" if shifts else None, keep=keep)
        if return_latents:
            return latents
        audio = run.decoded(latents)
    return _put_back(audio, original, mask if keep_exact else None, run, crossfade_seconds)


@torch.no_grad()
def generate_diffusion_cond_inpaint(
    model: Any,
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
    options, guidance = split_options(sampler_kwargs, SamplingOptions, GuidanceOptions)
    _check_inpainting(model, inpaint_audio, inpaint_mask, keep_exact and not return_latents)
    run = GenerationRun(model, steps, batch_size, sample_size, seed, device, options)
    mask = _mask(run, inpaint_mask)
    with run.settings():
        positive = required_conditions(run.conditions(conditioning, conditioning_tensors, "conditioning"), model)
        negative = run.conditions(negative_conditioning, negative_conditioning_tensors, "negative_conditioning")
        init = run.encoded(run.audio(init_audio, "init_audio"))
        original = run.audio(inpaint_audio, "inpaint_audio")
        inpainting = _inpainting_conditions(run, run.encoded(original), mask)
        denoisers = make_denoisers(
            model, positive | inpainting, None if negative is None else negative | inpainting, cfg_scale, guidance
        )
        latents = run.sample(denoisers, init, init_noise_level)
        if return_latents:
            return latents
        audio = run.decoded(latents)
    return _put_back(audio, original, mask if keep_exact else None, run, crossfade_seconds)


def make_denoisers(
    model: Any, positive: Conditions, negative: Conditions | None, cfg_scale: float, guidance: GuidanceOptions
) -> MakeDenoiser:
    """Makers of what samplers call, under these conditions."""
    dtype = parameter_dtype(model.model, torch.float32)
    inputs = model.get_conditioning_inputs(positive)
    negative_inputs = {} if negative is None else model.get_conditioning_inputs(negative, negative=True)

    def make(items: slice) -> Denoiser:
        denoiser: Denoiser = model.denoiser(
            select(inputs, items, dtype),
            select(negative_inputs, items, dtype),
            cfg_scale=cfg_scale,
            cfg_interval=guidance.cfg_interval,
            scale_phi=guidance.scale_phi,
            batch_cfg=guidance.batch_cfg,
        )
        return denoiser

    return make


def required_conditions(conditions: Conditions | None, model: Any) -> Conditions:
    if conditions is not None:
        return conditions
    if model.conditioner is None:
        return {}
    raise ValueError("give conditioning (metadata, one dict per item) or conditioning_tensors")


def _check_inpainting(model: Any, audio: Any, mask: Any, keep_exact: bool) -> None:
    routed = [*model.input_concat_ids, *model.cross_attn_cond_ids, *model.global_cond_ids, *model.prepend_cond_ids]
    if audio is not None and "inpaint_masked_input" not in routed:
        raise ValueError(
            "this model cannot inpaint: its config routes no 'inpaint_masked_input' to the network; "
            "generate_diffusion_cond keeps audio without that"
        )
    _check_mask(audio, mask, keep_exact)


def _check_mask(audio: Any, mask: Any, keep_exact: bool) -> None:
    if audio is not None and mask is None:
        logger.warning("inpaint_audio has no effect without inpaint_mask, which says what to keep")
    if keep_exact and (audio is None or mask is None):
        raise ValueError("keep_exact needs inpaint_audio and inpaint_mask")


def _mask(run: GenerationRun, given: Any) -> Tensor | None:
    """(b, 1, samples) or (b, 1, frames), 1 keep and 0 generate."""
    if given is None:
        return None
    mask = batch_mask(given, run.batch_size)
    if mask.shape[-1] not in (run.sample_size, run.frames):
        raise ValueError(
            f"inpaint_mask is {mask.shape[-1]} samples long, and sample_size is {run.sample_size}; make them equal"
        )
    return mask.to(run.device)


def _kept(run: GenerationRun, original: Tensor | None, mask: Tensor | None, bands: Tensor | None) -> Kept | None:
    """What a model that was not trained to inpaint is made to keep; `bands` (d, t) tells of a spectrogram's bands."""
    if original is None or (mask is None and bands is None):
        return None
    data = run.encoded(original)
    assert data is not None
    if bands is not None:
        channels = getattr(run.model.model, "image_channels", 1)
        return Kept(
            data, _mask_of_image(bands.to(data), data.shape[1] // channels, data.shape[2]).repeat(1, channels, 1)
        )
    assert mask is not None
    return Kept(data, resize_mask(mask, run.frames))


def _mask_of_image(bands: Tensor, rows: int, frames: int) -> Tensor:
    """A mask (d, t) at another size, (1, rows, frames): what covers anything that is to be generated is generated."""
    return 1 - torch.nn.functional.adaptive_max_pool2d(1 - bands[None], (rows, frames))


def _put_back(
    audio: Tensor, original: Tensor | None, mask: Tensor | None, run: GenerationRun, crossfade_seconds: float
) -> Tensor:
    """The kept samples themselves, instead of what came through the codec."""
    if original is None or mask is None:
        return audio
    fade = round(crossfade_seconds * run.model.sample_rate)
    return keep_region(audio, original, resize_mask(mask, run.sample_size), fade)


def _inpainting_conditions(run: GenerationRun, kept: Tensor | None, mask: Tensor | None) -> Conditions:
    """The mask in latent frames, and what it keeps."""
    shape = (run.batch_size, run.model.io_channels, run.frames)
    if mask is None:
        mask = torch.zeros(run.batch_size, 1, run.frames, device=run.device)
    frames = resize_mask(mask, run.frames)
    masked = torch.zeros(shape, device=run.device) if kept is None else kept * frames
    return {"inpaint_mask": Condition(frames, None), "inpaint_masked_input": Condition(masked, None)}
