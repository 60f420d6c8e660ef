"""Between two clips: both are followed back to the noise that they come from, and what lies between is sampled."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.inference.generation.diffusion import Audio, Metadata, make_denoisers, required_conditions
from stable_audio_tools.inference.generation.options import GuidanceOptions, SamplingOptions, split_options
from stable_audio_tools.inference.generation.run import GenerationRun
from stable_audio_tools.inference.sampling.samplers import find_sampler

logger = logging.getLogger(__name__)

_PARALLEL = 1e-4  # sine of the angle below which directions count as equal


def slerp(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Along the great circle from `first` to `second` (b, d, t), at shares `weight` (b,) of the way."""
    likeness = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1)
    angle = likeness.clamp(-1, 1).acos()[:, None, None]
    share, sine = weight.to(first)[:, None, None], angle.sin()
    along = (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / sine.clamp(min=_PARALLEL)
    return torch.where(sine < _PARALLEL, torch.lerp(first, second, share), along)


@torch.no_grad()
def interpolate_audio(
    model: Any,
    first: Audio,
    second: Audio,
    weights: Sequence[float],
    *,
    steps: int,
    sample_size: int,
    seed: int | Sequence[int] = 0,
    device: str | torch.device = "auto",
    conditioning: Metadata | None = None,
    cfg_scale: float = 1.0,
    refinements: int = 2,
    **sampler_kwargs: Any,
) -> Tensor:
    """Audio (b, c, n), one item per weight: 0 is the first clip, 1 the second.

    The way back is that of DDIM without fresh noise, so only deterministic samplers without noise of their own take the
    same way forth; see `invert_ddim` for `refinements`.
    """
    kinds = (SamplingOptions, GuidanceOptions) if hasattr(model, "conditioner") else (SamplingOptions,)
    options, *guidance = split_options(sampler_kwargs, *kinds)
    name = model.objective.invertible_sampler
    if options.sampler_type not in (None, name):
        raise ValueError(
            f"sampler_type is {options.sampler_type!r}, and only {name!r} can be followed back to the noise"
        )
    if any(not 0 <= weight <= 1 for weight in weights):
        raise ValueError(f"weights must be from 0, the first clip, to 1, the second, got {list(weights)}")
    run = GenerationRun(
        model, steps, len(weights), sample_size, seed, device, options, find_sampler(name, model.objective)
    )
    run.objective = run.objective.unrestricted()  # the way back knows no clipping, so the way forth must not either
    with run.settings():
        make = (lambda _: model.denoiser()) if not guidance else None
        if make is None:
            conditions = required_conditions(run.conditions(conditioning, None, "conditioning"), model)
            make = make_denoisers(model, conditions, None, cfg_scale, guidance[0])
        ends = [run.encoded(run.audio(audio, name)) for audio, name in ((first, "audio"), (second, "to_audio"))]
        before, after = (run.inverted(make, end, refinements) for end in ends if end is not None)
        return run.decoded(run.sample(make, start=slerp(before, after, torch.tensor(list(weights)))))
