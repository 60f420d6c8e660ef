"""Samplers of models with the objective ddpm, and their inversion.

Equation numbers are those of Ho et al. 2020 (ddpm) and Song et al. 2021 (ddim).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.inference.sampling.randomness import NoiseSource
from stable_audio_tools.inference.sampling.watching import Watch
from stable_audio_tools.models.diffusion.guidance import Denoiser, time_of_batch
from stable_audio_tools.models.diffusion.objectives import Objective


class _Predicted(NamedTuple):
    data: Tensor
    noise: Tensor


def ddpm(
    denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch, objective: Objective
) -> Tensor:
    """Take ancestral steps: mean and variance of the posterior of eq. 6 and 7."""
    for i, (t, t_next) in enumerate(pairwise(times.tolist())):
        data = _predict(denoiser, x, t, objective).data
        here, there = _left(t, objective), _left(t_next, objective)
        kept = here / there  # alpha of this step, and 1 - kept its beta
        mean = math.sqrt(there) * (1 - kept) / (1 - here) * data + math.sqrt(kept) * (1 - there) / (1 - here) * x
        deviation = math.sqrt((1 - there) / (1 - here) * (1 - kept))
        x = mean + deviation * noise.like(x) if deviation > 0 else mean
        watch.step(x=x, denoised=data, t=t, sigma=math.sqrt(1 - here), i=i)
    return x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    noise: NoiseSource,
    watch: Watch,
    objective: Objective,
    eta: float = 0.0,
) -> Tensor:
    """Take steps of eq. 12 and 16: deterministic at eta 0, as ancestral as ddpm at eta 1."""
    for i, (t, t_next) in enumerate(pairwise(times.tolist())):
        data, direction = _predict(denoiser, x, t, objective)
        here, there = _left(t, objective), _left(t_next, objective)
        fresh = eta * math.sqrt((1 - there) / (1 - here) * max(1 - here / there, 0.0))
        x = math.sqrt(there) * data + math.sqrt(max(1 - there - fresh**2, 0.0)) * direction
        if fresh > 0:
            x = x + fresh * noise.like(x)
        watch.step(x=x, denoised=data, t=t, sigma=math.sqrt(1 - here), i=i)
    return x


@torch.no_grad()
def invert_ddim(
    denoiser: Denoiser, data: Tensor, times: Tensor, watch: Watch, objective: Objective, refinements: int = 2
) -> Tensor:
    """Return the state at `times[0]` from which `ddim` at eta 0 leads to `data` (b, d, t) over the same times.

    The steps equal those of `v-ddim` for v models and of `euler` for flows. A step back needs the prediction at its far
    end: the first guess uses the prediction at the near end, and each refinement the prediction at the current guess.
    """
    x = data
    for i, (t_next, t) in enumerate(pairwise(times.flip(0).tolist())):
        near, far = _mix(t_next, objective), _mix(t, objective)
        guess = x
        for _ in range(1 + refinements):
            direction = objective.predict_noise(guess, denoiser(guess, time_of_batch(t, x)), _exact(t, x))
            clean = (x - near[1] * direction) / near[0]
            guess = far[0] * clean + far[1] * direction
        x = guess
        watch.step(x=x, denoised=clean, t=t, sigma=far[1], i=i)
    return x


def _predict(denoiser: Denoiser, x: Tensor, t: float, objective: Objective) -> _Predicted:
    output, exact = denoiser(x, time_of_batch(t, x)), _exact(t, x)
    data = objective.restrict(objective.predict_data(x, output, exact))
    return _Predicted(data, objective.predict_noise(x, output, exact))


def _mix(t: float, objective: Objective) -> tuple[float, float]:
    alpha, sigma = objective.mix(torch.tensor([t], dtype=torch.float64))
    return float(alpha), float(sigma)


def _left(t: float, objective: Objective) -> float:
    """Return the squared share of data, alpha bar."""
    return _mix(t, objective)[0] ** 2


def _exact(t: float, x: Tensor) -> Tensor:
    """Return t in float64, because small differences of times matter."""
    return torch.full((len(x),), t, dtype=torch.float64)
