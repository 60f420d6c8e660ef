"""Samplers of models with the objective ddpm: on the table itself, backwards through it, and as a v model.

Equation numbers are those of Ho et al. 2020 (ddpm) and Song et al. 2021 (ddim).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.inference.sampling.randomness import NoiseSource
from stable_audio_tools.inference.sampling.watching import Watch
from stable_audio_tools.models.diffusion.ddpm import DDPM
from stable_audio_tools.models.diffusion.denoising import Denoiser
from stable_audio_tools.models.diffusion.guidance import Guided
from stable_audio_tools.models.diffusion.objectives import (
    DiffusionObjective,
    mix_at,
    predict_data,
    predict_noise,
    ratio_at,
)


class _Predicted(NamedTuple):
    data: Tensor
    noise: Tensor


def ddpm(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch, objective: DDPM) -> Tensor:
    """Ancestral steps: mean and variance of the posterior of eq. 6 and 7."""
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
    objective: DDPM,
    eta: float = 0.0,
) -> Tensor:
    """Eq. 12 and 16: deterministic at eta 0, as ancestral as ddpm at eta 1."""
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
    denoiser: Denoiser, data: Tensor, times: Tensor, watch: Watch, objective: DiffusionObjective, refinements: int = 2
) -> Tensor:
    """The state at `times[0]` from which `ddim` at eta 0 comes to `data` (b, d, t) over the same times.

    For v models it is that of `v-ddim`, for flows that of `euler`, whose steps are the same. A step back needs the
    prediction at its far end: at first that of the near end stands in, then each refinement takes the prediction at
    the state found so far.
    """
    x = data
    for i, (t_next, t) in enumerate(pairwise(times.flip(0).tolist())):
        near, far = _mix(t_next, objective), _mix(t, objective)
        guess = x
        for _ in range(1 + refinements):
            direction = predict_noise(guess, denoiser(guess, _at(t, x)), _exact(t, x), objective)
            clean = (x - near[1] * direction) / near[0]
            guess = far[0] * clean + far[1] * direction
        x = guess
        watch.step(x=x, denoised=clean, t=t, sigma=far[1], i=i)
    return x


class VelocityDenoiser:
    """A network of the objective ddpm as one that predicts v at cosine times, as samplers of v models call it.

    Both mix data and noise so that the squares of the shares add up to 1: only the time and the output differ.
    """

    def __init__(self, denoiser: Denoiser, objective: DDPM) -> None:
        self._denoiser, self._objective = denoiser, objective

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        there = self._time(t)
        return self._velocity(x, self._denoiser(x, there.to(x)), t, there)

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        there = self._time(t)
        outputs = self._denoiser.guided(x, there.to(x))
        return Guided(*(self._velocity(x, output, t, there) for output in outputs))

    def _time(self, t: Tensor) -> Tensor:
        exact = t if t.device.type == "mps" else t.double()
        return self._objective.time(ratio_at(exact, "v"))

    def _velocity(self, x: Tensor, output: Tensor, t: Tensor, there: Tensor) -> Tensor:
        alpha, sigma = (part[:, None, None].to(x) for part in mix_at(t, "v"))
        noise = predict_noise(x, output, there, self._objective)
        return alpha * noise - sigma * predict_data(x, output, there, self._objective)


def _predict(denoiser: Denoiser, x: Tensor, t: float, objective: DDPM) -> _Predicted:
    output, exact = denoiser(x, _at(t, x)), _exact(t, x)
    data = predict_data(x, output, exact, objective)
    if objective.clip_sample is not None:
        data = data.clamp(-objective.clip_sample, objective.clip_sample)
    return _Predicted(data, predict_noise(x, output, exact, objective))


def _mix(t: float, objective: DiffusionObjective) -> tuple[float, float]:
    alpha, sigma = mix_at(torch.tensor([t], dtype=torch.float64), objective)
    return float(alpha), float(sigma)


def _left(t: float, objective: DDPM) -> float:
    """The squared share of data, alpha bar."""
    return _mix(t, objective)[0] ** 2


def _at(t: float, x: Tensor) -> Tensor:
    """t for every item of the batch."""
    return x.new_full((len(x),), t)


def _exact(t: float, x: Tensor) -> Tensor:
    """As `_at`, with all digits: what is small is a difference of times."""
    return torch.full((len(x),), t, dtype=torch.float64)
