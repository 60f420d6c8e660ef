"""Between two clips: both are followed back to the noise that they come from, and what lies between is sampled."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from stable_audio_tools.inference.generation.diffusion import Audio, Metadata, make_denoisers, required_conditions
from stable_audio_tools.inference.generation.run import GenerationRun, MakeDenoiser
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.unconditional import DiffusionModelWrapper

_PARALLEL = 1e-4  # sine of the angle below which directions count as equal
_REFINEMENTS = 2  # of each step back: see `invert_ddim`


def slerp(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Along the great circle from `first` to `second` (b, d, t), at shares `weight` (b,) of the way."""
    likeness = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1)
    angle = likeness.clamp(-1, 1).acos()[:, None, None]
    share, sine = weight.to(first)[:, None, None], angle.sin()
    along = (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / sine.clamp(min=_PARALLEL)
    return torch.where(sine < _PARALLEL, torch.lerp(first, second, share), along)


@torch.no_grad()
def interpolate(
    run: GenerationRun,
    first: Audio,
    second: Audio,
    weights: Sequence[float],
    conditioning: Metadata | None,
    cfg_scale: float | None,
) -> Tensor:
    """Return audio (b, c, n), one item per weight: 0 is the first clip, 1 the second.

    The way back is that of DDIM without fresh noise, so the run has a deterministic sampler that takes the same way
    forth. Without `cfg_scale`, the model has no conditions.
    """
    run.objective = run.objective.unrestricted()  # the way back knows no clipping, so the way forth must not either
    model = run.model
    with run.settings():
        if cfg_scale is None:
            denoiser = cast(DiffusionModelWrapper, model).denoiser
            make: MakeDenoiser = lambda _: denoiser()  # noqa: E731
        else:
            conditions = required_conditions(run.conditions(conditioning, None, "conditioning"), model)
            make = make_denoisers(
                cast(ConditionedDiffusionModelWrapper, model), conditions, None, cfg_scale, run.request
            )
        ends = [run.encoded(run.audio(audio, name)) for audio, name in ((first, "audio"), (second, "to_audio"))]
        before, after = (run.inverted(make, end, _REFINEMENTS) for end in ends if end is not None)
        return run.decoded(run.sample(make, start=slerp(before, after, torch.tensor(list(weights)))))
