"""Samplers: one function per algorithm, all with one signature.

    sampler(denoiser, x, times, noise, watch) -> data (b, d, t)

`denoiser(x, t)` is the network under its conditions; x (b, d, t) is the state at `times[0]` in the network's own scale,
alpha * data + sigma * noise; `times` (steps + 1,) descend to 0, the data. What is random comes from `noise`.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.inference.sampling import ddpm_samplers as table
from stable_audio_tools.inference.sampling import k_samplers as k
from stable_audio_tools.inference.sampling.randomness import NoiseSource
from stable_audio_tools.inference.sampling.watching import Watch
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective
from stable_audio_tools.models.diffusion.guidance import Denoiser, time_of_batch
from stable_audio_tools.models.diffusion.objectives import FlowObjective, Objective, V, VObjective, parse_objective

_LARGEST_RATIO = 100.0  # sigma / alpha where sampling of v models begins


class Sampler(Protocol):
    """The one signature."""

    def __call__(self, denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor: ...


# ------------------------------------------------------------------ flows: the network predicts noise - data


def euler(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Straight steps along the flow."""
    for i, (t, t_next) in enumerate(_steps(times)):
        velocity = denoiser(x, time_of_batch(t, x))
        x = x + (t_next - t) * velocity
        watch.step(x=x, denoised=x - t_next * velocity, t=t, sigma=t, i=i + 1)
    return x


def rk4(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """The classical Runge-Kutta method of fourth order: four passes a step."""
    middles = (times[:-1] + times.diff() / 2).tolist()  # in the precision of times, where guidance may begin or end
    for i, ((t, t_next), middle) in enumerate(zip(_steps(times), middles)):
        h = t_next - t
        first = denoiser(x, time_of_batch(t, x))
        second = denoiser(x + h / 2 * first, time_of_batch(middle, x))
        third = denoiser(x + h / 2 * second, time_of_batch(middle, x))
        fourth = denoiser(x + h * third, time_of_batch(t_next, x))
        x = x + h / 6 * (first + 2 * (second + third) + fourth)
        watch.step(x=x, denoised=x - t_next * fourth, t=t, sigma=t, i=i + 1)
    return x


def flow_dpmpp(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in l = log(alpha / sigma); of first order where l is infinite."""
    previous: tuple[float, Tensor] | None = None  # l of the step before, and its prediction
    for i, (t, t_next) in enumerate(_steps(times)):
        data = x - t * denoiser(x, time_of_batch(t, x))
        watch.step(x=x, denoised=data, t=t, sigma=t, i=i)
        here, there = _log_ratio(t), _log_ratio(t_next)
        h = there - here
        target = data
        if previous is not None and t_next > 0:
            half_step = 0.5 * h / (here - previous[0])
            target = data + half_step * (data - previous[1])
        x = (t_next / t) * x - (1 - t_next) * math.expm1(-h) * target
        previous = here, data
    return x


def pingpong(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Predict the data, add fresh noise for the next time; for distilled models."""
    for i, (t, t_next) in enumerate(_steps(times)):
        data = x - t * denoiser(x, time_of_batch(t, x))
        watch.step(x=x, denoised=data, t=t, sigma=t, i=i)
        x = (1 - t_next) * data + t_next * noise.like(x)
    return x


# ------------------------------------------------------------------ v: the network predicts alpha noise - sigma data


def ddim(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): deterministic at eta 0, ancestral at eta 1."""
    for i, (t, t_next) in enumerate(_steps(times)):
        v = denoiser(x, time_of_batch(t, x))
        x = _ddim_step(x, v, v, i, t, t_next, noise, watch, eta)
    return x


def ddim_cfgpp(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DDIM under CFG++ (Chung et al. 2024): the data of the guided, the noise of the unconditional prediction."""
    for i, (t, t_next) in enumerate(_steps(times)):
        v, unconditional = denoiser.guided(x, time_of_batch(t, x))
        x = _ddim_step(x, v, unconditional, i, t, t_next, noise, watch)
    return x


def _ddim_step(
    x: Tensor,
    v: Tensor,
    v_of_noise: Tensor,
    i: int,
    t: float,
    t_next: float,
    noise: NoiseSource,
    watch: Watch,
    eta: float = 0.0,
) -> Tensor:
    alpha, sigma = _cosine(t)
    alpha_next, sigma_next = _cosine(t_next)
    data = alpha * x - sigma * v
    fresh = eta * (sigma_next / sigma) * math.sqrt(max(1 - (alpha / alpha_next) ** 2, 0.0))
    kept = math.sqrt(max(sigma_next**2 - fresh**2, 0.0))
    x = alpha_next * data + kept * (sigma * x + alpha * v_of_noise)
    if fresh > 0:
        x = x + fresh * noise.like(x)
    watch.step(x=x, denoised=data, t=t, sigma=sigma, i=i)
    return x


# ------------------------------------------------------------------ names


class SamplerInfo(NamedTuple):
    """A sampler, what it is for, and the schedule that it is published with."""

    run: Callable[..., Tensor]  # a `Sampler`, with further keywords where the fields below say so
    objectives: tuple[type[Objective], ...]  # those that it suits, with their subclasses
    schedule: str
    starts_by_ratio: bool = False  # the first noise level is sigma / alpha, otherwise t
    own_steps: bool = False  # reports steps that differ from the schedule
    steps_by_batch: bool = False  # chooses them by the error of the whole batch
    takes_eta: bool = False  # the keyword `eta`: how much fresh noise there is
    on_table: bool = False  # the keyword `objective`, ddpm

    def view(self, objective: Objective) -> Objective:
        """Return the objective that the sampler works with."""
        return objective if self.on_table else objective.continuous

    def bound(self, denoiser: Denoiser, objective: Objective, eta: float | None) -> tuple[Sampler, Denoiser]:
        """Return the sampler for a model of this objective, and the model as the sampler takes it."""
        keywords: dict[str, Any] = {} if eta is None else {"eta": eta}
        if self.on_table:
            keywords["objective"] = objective
        else:
            denoiser = objective.continuous_denoiser(denoiser)
        return partial(self.run, **keywords) if keywords else self.run, denoiser

    def check_eta(self, eta: float | None, name: str | None) -> None:
        """Raise if eta is out of range or has no effect."""
        if eta is None:
            return
        if not self.takes_eta:
            usable = ", ".join(other for other, sampler in SAMPLERS.items() if sampler.takes_eta)
            raise ValueError(f"eta: sampler_type {name!r} does not use it; leave it out, or use {usable}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 (no fresh noise) to 1 (as much as ddpm), got {eta:g}")

    def first_time(self, level: float | None, name: str = "sigma_max", objective: Objective = V) -> float:
        """Return the time of a noise level, at most the largest one of the model; None is the published one."""
        if level is not None and not level > 0:
            raise ValueError(f"{name} must be above 0, got {level!r}")
        if not self.starts_by_ratio:
            return 1.0 if level is None else min(float(level), 1.0)
        ratio = min(_LARGEST_RATIO if level is None else level, objective.largest_ratio)
        return float(V.time(torch.tensor(ratio, dtype=torch.float64)))

    def first_state(self, times: Tensor, noise: Tensor, init: Tensor | None, objective: Objective) -> Tensor:
        """Return `init` (b, d, t) with the noise of the first time, or pure noise, which only some samplers scale."""
        alpha, sigma = (float(part) for part in objective.mix(times[0]))
        if init is not None:
            return alpha * init + sigma * noise
        return sigma * noise if self.starts_by_ratio else noise


_FLOWS = (FlowObjective,)


def _k(run: Sampler, own_steps: bool = False, steps_by_batch: bool = False) -> SamplerInfo:
    return SamplerInfo(run, (VObjective, DDPMObjective), "polyexponential", True, own_steps, steps_by_batch)


SAMPLERS: dict[str, SamplerInfo] = {
    "dpmpp-2m-sde": _k(k.dpmpp_2m_sde),
    "dpmpp-3m-sde": _k(k.dpmpp_3m_sde),
    "dpmpp-2m": _k(k.dpmpp_2m),
    "k-heun": _k(k.heun),
    "k-lms": _k(k.lms),
    "k-dpmpp-2s-ancestral": _k(k.dpmpp_2s_ancestral),
    "k-dpm-2": _k(k.dpm_2),
    "k-dpm-fast": _k(k.dpm_fast, own_steps=True),
    "k-dpm-adaptive": _k(k.dpm_adaptive, own_steps=True, steps_by_batch=True),
    "ddpm": SamplerInfo(table.ddpm, (DDPMObjective,), "leading", on_table=True),
    "ddim": SamplerInfo(table.ddim, (DDPMObjective,), "leading", takes_eta=True, on_table=True),
    "v-ddim": SamplerInfo(ddim, (VObjective,), "linear", takes_eta=True),
    "v-ddim-cfgpp": SamplerInfo(ddim_cfgpp, (VObjective,), "linear"),
    "euler": SamplerInfo(euler, _FLOWS, "logsnr"),
    "rk4": SamplerInfo(rk4, _FLOWS, "linear"),
    "dpmpp": SamplerInfo(flow_dpmpp, _FLOWS, "logsnr"),
    "pingpong": SamplerInfo(pingpong, _FLOWS, "logsnr"),
}


def samplers_for(objective: Objective | str) -> list[str]:
    """Return the names of the samplers that suit an objective."""
    kind = type(parse_objective(objective))
    return [name for name, sampler in SAMPLERS.items() if issubclass(kind, sampler.objectives)]


def find_sampler(name: str | None, objective: Objective | str) -> SamplerInfo:
    """Return the sampler of that name, or (None) the objective's default."""
    objective = parse_objective(objective)
    name = objective.default_sampler if name is None else name
    if name not in SAMPLERS and f"k-{name}" in SAMPLERS:
        name = f"k-{name}"  # as k-diffusion itself names it
    usable = samplers_for(objective)
    if name not in SAMPLERS:
        raise ValueError(f"sampler_type: no sampler named {name!r}; {nearest(name, usable)}")
    if name not in usable:
        raise ValueError(
            f"sampler_type {name!r} is not for a model with the objective {objective.name!r}; use {', '.join(usable)}"
        )
    return SAMPLERS[name]


def _steps(times: Tensor) -> list[tuple[float, float]]:
    return list(pairwise(times.tolist()))


def _cosine(t: float) -> tuple[float, float]:
    angle = t * math.pi / 2
    return math.cos(angle), math.sin(angle)


def _log_ratio(t: float) -> float:
    """log(alpha / sigma) of a flow, infinite at its ends."""
    if t >= 1:
        return -math.inf
    return math.log((1 - t) / t) if t > 0 else math.inf
