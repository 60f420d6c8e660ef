"""`sample_diffusion`: one call for every objective, sampler and schedule, as published with generation 0.0.20."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.data.transforms import (
    compute_effective_seq_len_from_conditioning,
    create_padding_mask_from_lengths,
)
from stable_audio_tools.inference.sampling import row_samplers
from stable_audio_tools.inference.sampling.published import CalledNetwork
from stable_audio_tools.inference.sampling.randomness import NoiseSource, ProcessNoise
from stable_audio_tools.inference.sampling.samplers import find_sampler, samplers_for
from stable_audio_tools.inference.sampling.schedules import Span, find_schedule
from stable_audio_tools.inference.sampling.shifted_schedules import build_schedule
from stable_audio_tools.inference.sampling.watching import (
    Callback,
    CancelSignal,
    Watch,
    WatchedDenoiser,
    progress_of,
)
from stable_audio_tools.models.diffusion.distribution_shift import Shift
from stable_audio_tools.models.diffusion.guidance import Denoiser
from stable_audio_tools.models.diffusion.objectives import Objective, parse_objective
from stable_audio_tools.models.precision import weight_dtype

_SCHEDULE_KEYS = ("sigma_min", "sigma_max", "rho")
_GUIDANCE_KEYS = ("cfg_interval", "scale_phi", "cfg_norm_threshold")


@torch.no_grad()
def sample_diffusion(
    model: nn.Module,
    noise: Tensor,
    cond_inputs: Mapping[str, Any],
    diffusion_objective: Objective | str,
    steps: int,
    cfg_scale: float = 1.0,
    conditioning: Sequence[Mapping[str, Any]] | None = None,
    sample_rate: int = 44100,
    pretransform: Any = None,
    mask_padding_attention: bool = False,
    use_effective_length_for_schedule: bool = False,
    headroom_seconds: float = 5.0,
    padding_mask: Tensor | None = None,
    dist_shift: Shift | None = None,
    sampler_type: str | None = None,
    batch_cfg: bool = True,
    rescale_cfg: bool = False,
    apg_scale: float = 1.0,
    init_data: Tensor | None = None,
    init_noise_level: float = 1.0,
    callback: Callback | None = None,
    disable_tqdm: bool = False,
    decode: bool = True,
    *,
    source: NoiseSource | None = None,
    cancel: CancelSignal | None = None,
    progress: Any = True,
    **sampler_kwargs: Any,
) -> Tensor:
    """Sample a network (`model` of a wrapper) under `cond_inputs`; decode with the pretransform if there is one.

    With `seconds_total` in the `conditioning`, `mask_padding_attention` keeps attention within each item's length and
    `headroom_seconds` after it, and `use_effective_length_for_schedule` gives each item its own schedule. Other
    keywords go to the schedules of v models (`sigma_min`, `sigma_max`, `rho`) and to the network. Samplers draw from
    `source`, by default the random state of the process.
    """
    objective = parse_objective(diffusion_objective)
    ratio = 1 if pretransform is None else pretransform.downsampling_ratio
    lengths = compute_effective_seq_len_from_conditioning(conditioning, sample_rate, ratio, noise.device)
    if padding_mask is None and mask_padding_attention and lengths is not None:
        headroom = int(headroom_seconds * sample_rate / ratio)
        padding_mask = create_padding_mask_from_lengths(lengths + headroom, noise.shape[-1])
    schedule = {key: sampler_kwargs.pop(key) for key in _SCHEDULE_KEYS if key in sampler_kwargs}
    denoiser = _denoiser(
        model,
        {
            **cond_inputs,
            "cfg_scale": cfg_scale,
            "batch_cfg": batch_cfg,
            "rescale_cfg": rescale_cfg,
            "apg_scale": apg_scale,
            **sampler_kwargs,
        },
        objective,
        padding_mask,
    )
    recommended = objective.recommended.sampler_type
    name = sampler_type or (recommended if recommended in row_samplers.FLOW_SAMPLERS else "euler")
    with progress_of(False if disable_tqdm else progress, steps) as bar:
        watch = Watch(callback, cancel, bar, steps)
        run = _Run(
            objective,
            steps,
            dist_shift,
            lengths if use_effective_length_for_schedule else None,
            WatchedDenoiser(denoiser, watch, weight_dtype(model)),
            ProcessNoise() if source is None else source,
            watch,
        )
        sampled = run.sample(name, noise, init_data, init_noise_level, schedule)
    if not decode or pretransform is None:
        return sampled
    audio: Tensor = pretransform.decode(sampled.to(weight_dtype(pretransform)))
    return audio if padding_mask is None else silence_after(audio, padding_mask, ratio)


def silence_after(audio: Tensor, padding_mask: Tensor, ratio: int) -> Tensor:
    """Set audio (b, c, n) to 0 where no frame of the mask (b, t) is real, because padding decodes to noise."""
    seen = padding_mask.repeat_interleave(ratio, dim=-1)[:, : audio.shape[-1]]
    seen = torch.nn.functional.pad(seen, (0, audio.shape[-1] - seen.shape[-1]))
    return audio * seen[:, None].to(audio.dtype)


def _denoiser(model: nn.Module, options: dict[str, Any], objective: Objective, padding_mask: Tensor | None) -> Denoiser:
    """Return the network under its conditions; our own networks project their conditions once."""
    from stable_audio_tools.models.diffusion.conditioned import DiTWrapper
    from stable_audio_tools.models.diffusion.guidance import Guidance

    inputs = {name: value for name, value in options.items() if torch.is_tensor(value) or name == "modular_local_cond"}
    rest = {name: value for name, value in options.items() if name not in inputs and value is not None}
    known = {"cfg_scale", "batch_cfg", "rescale_cfg", "apg_scale", *_GUIDANCE_KEYS}
    if padding_mask is not None:
        inputs["padding_mask"] = padding_mask
    if isinstance(model, DiTWrapper) and set(rest) <= known:
        guidance = Guidance(
            rest["cfg_scale"],
            tuple(rest.get("cfg_interval", (0.0, 1.0))),
            rest.get("scale_phi"),
            rest["batch_cfg"],
            rest["apg_scale"],
            rest.get("cfg_norm_threshold", 0.0),
        )
        return model.denoiser(inputs, guidance, objective)
    return CalledNetwork(model, {**rest, **inputs})


class _Run:
    """The inputs that all ways of sampling share."""

    def __init__(
        self,
        objective: Objective,
        steps: int,
        shift: Shift | None,
        lengths: Tensor | None,
        denoiser: Denoiser,
        noise: NoiseSource,
        watch: Watch,
    ) -> None:
        self.objective, self.steps, self.shift, self.lengths = objective, steps, shift, lengths
        self.denoiser, self.noise, self.watch = denoiser, noise, watch

    def sample(
        self, name: str, noise: Tensor, init: Tensor | None, init_noise_level: float, schedule: Mapping[str, float]
    ) -> Tensor:
        usable = samplers_for(self.objective)
        if name in usable and name in row_samplers.FLOW_SAMPLERS:
            level = init_noise_level if init is not None else 1.0
            x = noise if init is None else init * (1 - level) + noise * level
            return row_samplers.FLOW_SAMPLERS[name](self.denoiser, x, self._times(level, x), self.noise, self.watch)
        if name in usable:
            return self._by_its_own_schedule(name, noise, init, init_noise_level, schedule)
        if "v-ddim" not in usable:
            find_sampler(name, self.objective)  # refuses the name in a sentence
        # Any other name is plain DDIM on the shifted schedule for v models.
        level = init_noise_level if init is not None else schedule.get("sigma_max", 1.0)
        times = self._times(level, noise)
        mix = self.objective.mix(torch.tensor(level))
        x = noise if init is None else init * mix.alpha + noise * mix.sigma
        return row_samplers.ddim(self.denoiser, x, times, self.noise, self.watch)

    def _by_its_own_schedule(
        self, name: str, noise: Tensor, init: Tensor | None, init_noise_level: float, schedule: Mapping[str, float]
    ) -> Tensor:
        sampler = find_sampler(name, self.objective)
        level = init_noise_level if init is not None else schedule.get("sigma_max")
        span = Span(
            sampler.view(self.objective),
            self.steps,
            sampler.first_time(level, objective=self.objective),
            schedule.get("sigma_min", 0.01),
            schedule.get("rho", 1.0),
            device=noise.device,
        )
        times = find_schedule(sampler.schedule)(span)
        x = sampler.first_state(times, noise, init, sampler.view(self.objective))
        run, denoiser = sampler.bound(self.denoiser, self.objective, None)
        return run(denoiser, x, times, self.noise, self.watch)

    def _times(self, level: float, x: Tensor) -> Tensor:
        return build_schedule(self.steps, level, self.shift, self.lengths, x.shape[-1], device=x.device)
