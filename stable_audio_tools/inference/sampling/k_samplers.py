"""The samplers of k-diffusion (Karras et al. 2022; Lu et al. 2022) for networks that predict v.

k-diffusion works on data + sigma * noise. Here the state is in the network's scale, as for all samplers, so it is
divided by alpha on the way in; at the end of a schedule, alpha is 1. Noise levels stay on the CPU, so
that no step waits for a GPU.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.packages import require
from stable_audio_tools.inference.sampling.randomness import NoiseSource, preserved_random_state
from stable_audio_tools.inference.sampling.watching import Watch
from stable_audio_tools.models.diffusion.guidance import Denoiser, Guided, with_known_time
from stable_audio_tools.models.diffusion.objectives import V

_ONE_PASS = ("lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")  # one pass a step, at the levels of the schedule


def heun(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 2 without churn): two passes a step."""
    with preserved_random_state(x.device):  # k-diffusion draws noise for the churn although it is zero
        return _run("heun", denoiser, x, times, watch)


def dpm_2(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver-2: two passes a step."""
    with preserved_random_state(x.device):  # as in `heun`
        return _run("dpm_2", denoiser, x, times, watch)


def lms(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Linear multistep of fourth order."""
    return _run("lms", denoiser, x, times, watch)


def dpmpp_2s_ancestral(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver++(2S) with fresh noise: two passes a step."""
    return _run("dpmpp_2s_ancestral", denoiser, x, times, watch, noise_sampler=lambda *_: noise.like(x))


def dpmpp_2m(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver++(2M)."""
    return _run("dpmpp_2m", denoiser, x, times, watch)


def dpmpp_2m_sde(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver++(2M) of the stochastic equation."""
    return _run_stochastic("dpmpp_2m_sde", denoiser, x, times, noise, watch)


def dpmpp_3m_sde(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver++(3M) of the stochastic equation."""
    return _run_stochastic("dpmpp_3m_sde", denoiser, x, times, noise, watch)


def dpm_fast(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver of third order with as many passes as steps, spaced by itself between the ends of the schedule."""
    low, high = _ends("k-dpm-fast", times)
    return _run("dpm_fast", denoiser, x, times, watch, low, high, len(times) - 1, noise_sampler=_no_noise)


def dpm_adaptive(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver-23, which chooses its steps between the ends of the schedule by its error over the batch."""
    low, high = _ends("k-dpm-adaptive", times)
    return _run("dpm_adaptive", denoiser, x, times, watch, low, high, rtol=0.01, atol=0.01, noise_sampler=_no_noise)


def _run(
    name: str, denoiser: Denoiser, x: Tensor, times: Tensor, watch: Watch, *positions: Any, **options: Any
) -> Tensor:
    """Call k-diffusion's sampler of that name; `positions` replace the noise levels."""
    start = float(V.mix(times[0]).alpha)
    follows_schedule = name in _ONE_PASS
    passes = iter(V.time(_levels(times)).tolist() if follows_schedule else ())

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:  # x = data + sigma noise, sigma (b,)
        sigma = sigma.to(x)[:, None, None]
        alpha = 1 / torch.sqrt(1 + sigma**2)
        t = torch.atan(sigma[:, 0, 0]) * (2 / math.pi)
        v = denoiser(x * alpha, with_known_time(t, next(passes)) if follows_schedule else t)
        return alpha**2 * x - sigma * alpha * v

    def report(info: dict[str, Any]) -> None:
        watch.step(**{**info, "t": torch.atan(torch.as_tensor(info["sigma"])) * (2 / math.pi)})

    sample = getattr(require("k_diffusion.sampling"), f"sample_{name}")
    given = positions or (_levels(times),)
    data: Tensor = sample(denoise, x / start, *given, callback=report, disable=True, **options)
    return data


def _levels(times: Tensor) -> Tensor:
    return V.ratio(times).float()


def _ends(name: str, times: Tensor) -> tuple[float, float]:
    """Return the smallest noise level above 0 and the largest one."""
    levels = _levels(times)
    if len(levels) < 3:
        raise ValueError(f"sampler_type {name!r} needs at least 2 steps, got {len(levels) - 1}")
    return float(levels[-2]), float(levels[0])


def _no_noise(*levels: Tensor) -> float:
    return 0.0


def _run_stochastic(
    name: str, denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch
) -> Tensor:
    """Run a sampler with noise from a Brownian path over noise levels, which does not depend on the steps."""
    levels = _levels(times)
    if len(levels) < 3:
        # One step to the data draws nothing, and k-diffusion's stochastic samplers cannot take it.
        return _run("dpmpp_2m", denoiser, x, times, watch)
    path = require("k_diffusion.sampling").BrownianTreeNoiseSampler
    noise_sampler = path(x, levels[-2], levels[0], noise.tree_seeds(), transform=_rounded)
    return _run(name, denoiser, x, times, watch, noise_sampler=noise_sampler)


def _rounded(level: Tensor) -> Tensor:
    """Round to the six digits that the path resolves, so that it does not warn about its ends."""
    return torch.tensor(round(float(level), 6), dtype=torch.float64)


class GradientDenoiser:
    """A denoiser that adds sigma^2 times the gradient of `cond_fn(x, sigma, denoised=...)` to the predicted data.

    x is data + sigma * noise and requires gradients, which flow to `denoised` through the network.
    """

    def __init__(self, denoiser: Denoiser, cond_fn: Callable[..., Tensor]) -> None:
        self._denoiser, self._cond_fn = denoiser, cond_fn

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part[:, None, None] for part in V.mix(t))
        with torch.enable_grad():
            noisy = (x / alpha).detach().requires_grad_()
            v = self._denoiser(noisy * alpha, t)
            denoised = alpha**2 * noisy - sigma * v
            gradient = self._cond_fn(noisy, (sigma / alpha)[:, 0, 0], denoised=denoised).detach()
        return v.detach() - gradient * sigma / alpha**2

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        output = self(x, t)
        return Guided(output, output)
