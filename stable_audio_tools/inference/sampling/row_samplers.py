"""The samplers of generation 0.0.20, whose times may differ from item to item.

They have the signature of `samplers`, but `times` is (steps + 1,) or (b, steps + 1), and callbacks are called before
each step. Numbers differ from those of 0.0.19 in `dpmpp`, whose log-SNR is clipped at the ends, and in `rk4`,
which calls the network at no time below 1e-5.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from stable_audio_tools.inference.sampling.randomness import NoiseSource
from stable_audio_tools.inference.sampling.watching import Watch
from stable_audio_tools.models.diffusion.guidance import Denoiser, on_host, with_known_time

_TINY = 1e-10
_LAST_TIME = 1e-5  # for rk4: networks have not seen t = 0


def euler(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Take straight steps along the flow."""
    for i, (t, t_next) in enumerate(_steps(times, x)):
        velocity = denoiser(x, t)
        watch.step(x=x, denoised=x - _wide(t) * velocity, t=t, sigma=t, i=i)
        x = x + _wide(t_next - t) * velocity
    return x


def rk4(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Integrate by the classical Runge-Kutta method of fourth order: four passes a step."""
    for i, (t, t_next) in enumerate(_steps(times, x)):
        h = _wide(t_next - t)
        middle = with_known_time((t + t_next) / 2, float(on_host(t) + on_host(t_next)) / 2)
        last = with_known_time(t_next.clamp(min=_LAST_TIME), max(float(on_host(t_next)), _LAST_TIME))
        first = denoiser(x, t)
        watch.step(x=x, denoised=x - _wide(t) * first, t=t, sigma=t, i=i)
        second = denoiser(x + h / 2 * first, middle)
        third = denoiser(x + h / 2 * second, middle)
        fourth = denoiser(x + h * third, last)
        x = x + h / 6 * (first + 2 * (second + third) + fourth)
    return x


def dpmpp(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in log-SNR; the first and the last step are of first order."""
    previous: tuple[Tensor, Tensor] | None = None  # log-SNR of the step before, and its prediction
    has_noise = (times.reshape(-1, times.shape[-1]) > 0).any(0).tolist()
    for i, (t, t_next) in enumerate(_steps(times, x)):
        data = x - _wide(t) * denoiser(x, t)
        watch.step(x=x, denoised=data, t=t, sigma=t, i=i)
        here, target = _log_snr(t), data
        if previous is not None and has_noise[i + 1]:
            ratio = (_log_snr(t_next) - here) / (here - previous[0])
            target = data + _wide(ratio / 2) * (data - previous[1])
        x = _wide(t_next / t.clamp(min=_TINY)) * x + _wide((t - t_next) / t.clamp(min=_TINY)) * target
        previous = here, data
    return x


def pingpong(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Predict the data, add fresh noise for the next time; for distilled models."""
    for i, (t, t_next) in enumerate(_steps(times, x)):
        data = x - _wide(t) * denoiser(x, t)
        watch.step(x=x, denoised=data, t=t, sigma=t, i=i)
        x = _wide(1 - t_next) * data + _wide(t_next) * noise.like(x)
    return x


def ddim(denoiser: Denoiser, x: Tensor, times: Tensor, noise: NoiseSource, watch: Watch) -> Tensor:
    """Deterministic DDIM (Song et al. 2021) for networks that predict v."""
    for i, (t, t_next) in enumerate(_steps(times, x)):
        alpha, sigma, alpha_next, sigma_next = (_wide(part) for part in (*_cosine(t), *_cosine(t_next)))
        v = denoiser(x, t)
        data = alpha * x - sigma * v
        watch.step(x=x, denoised=data, t=t, sigma=sigma.flatten(), i=i)
        x = alpha_next * data + sigma_next * (sigma * x + alpha * v)
    return x


FLOW_SAMPLERS = {"euler": euler, "rk4": rk4, "dpmpp": dpmpp, "pingpong": pingpong}


def _steps(times: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Time and next time of every step, (b,) each."""
    rows = times.to(device=x.device, dtype=torch.float32).expand(len(x), -1)
    first = times.reshape(-1, times.shape[-1])[0].float().tolist()
    columns = [with_known_time(rows[:, index], t) for index, t in enumerate(first)]
    yield from pairwise(columns)


def _wide(t: Tensor) -> Tensor:
    return t[:, None, None]


def _log_snr(t: Tensor) -> Tensor:
    return ((1 - t).clamp(min=_TINY) / t.clamp(min=_TINY)).log()


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    angle = t * (math.pi / 2)
    return angle.cos(), angle.sin()
