"""Published import path: the objective's maths, and samplers called with a bare network.

Such a call draws from the random state of the process, and passes what it does not know on to the network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.inference.sampling import samplers
from stable_audio_tools.inference.sampling.k_samplers import GradientDenoiser
from stable_audio_tools.inference.sampling.randomness import ProcessNoise
from stable_audio_tools.inference.sampling.samplers import Sampler, SamplerInfo, find_sampler
from stable_audio_tools.inference.sampling.schedules import Span, find_schedule
from stable_audio_tools.inference.sampling.watching import Callback, Watch, progress_of
from stable_audio_tools.models.diffusion.distribution_shift import (
    DistributionShift,
    sample_timesteps_logsnr,
    sample_timesteps_logsnr_uniform,
    truncated_logistic_normal_rescaled,
)
from stable_audio_tools.models.diffusion.guidance import Guided
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW, V

__all__ = [
    "DistributionShift",
    "alpha_sigma_to_t",
    "get_alphas_sigmas",
    "get_bmask",
    "make_cond_model_fn",
    "sample",
    "sample_discrete_euler",
    "sample_flow_dpmpp",
    "sample_flow_pingpong",
    "sample_k",
    "sample_rf",
    "sample_rk4",
    "sample_timesteps_logsnr",
    "sample_timesteps_logsnr_uniform",
    "t_to_alpha_sigma",
    "truncated_logistic_normal_rescaled",
]

Network = Callable[..., Any]  # network(x (b, d, t), t (b,), **extra_args)


def get_alphas_sigmas(t: Tensor) -> tuple[Tensor, Tensor]:
    """Share of data and of noise at time t of the v objective."""
    return V.mix(t)


t_to_alpha_sigma = get_alphas_sigmas


def alpha_sigma_to_t(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The inverse of `t_to_alpha_sigma`."""
    return torch.atan2(sigma, alpha) * (2 / torch.pi)


class CalledNetwork:
    """A bare network as a denoiser."""

    def __init__(self, network: Network, extra_args: dict[str, Any]) -> None:
        self._network = partial(network, **extra_args)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self._network(x, t)
        return out

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        output, info = self._network(x, t, return_info=True)
        return Guided(output, info.get("uncond_output", output))


@torch.no_grad()
def sample(
    model: Network,
    x: Tensor,
    steps: int,
    eta: float,
    callback: Callback | None = None,
    sigma_max: float = 1.0,
    dist_shift: DistributionShift | None = None,
    cfg_pp: bool = False,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """DDIM for a v network, from x (b, d, t) at time `sigma_max`."""
    if cfg_pp and eta:
        raise ValueError(f"cfg_pp is deterministic; eta must be 0, got {eta:g}")
    times = _times(steps, sigma_max, dist_shift, x)
    run: Sampler = samplers.ddim_cfgpp if cfg_pp else partial(samplers.ddim, eta=eta)
    return _run(run, model, x, times, callback, disable_tqdm, extra_args)


@torch.no_grad()
def sample_discrete_euler(
    model: Network,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """Euler's method for a flow; `sigmas` are the times, else `steps` equal ones from `sigma_max`, shifted."""
    times = _times(steps, sigma_max, dist_shift, x, sigmas)
    return _run(samplers.euler, model, x, times, callback, disable_tqdm, extra_args)


@torch.no_grad()
def sample_rk4(
    model: Network,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """Runge-Kutta's method for a flow; the times as in `sample_discrete_euler`."""
    times = _times(steps, sigma_max, dist_shift, x, sigmas)
    return _run(samplers.rk4, model, x, times, callback, disable_tqdm, extra_args)


@torch.no_grad()
def sample_flow_dpmpp(
    model: Network,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """DPM-Solver++ for a flow; the times as in `sample_discrete_euler`."""
    times = _times(steps, sigma_max, dist_shift, x, sigmas)
    return _run(samplers.flow_dpmpp, model, x, times, callback, disable_tqdm, extra_args)


@torch.no_grad()
def sample_flow_pingpong(
    model: Network,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """Ping-pong sampling of a distilled flow; the times as in `sample_discrete_euler`."""
    times = _times(steps, sigma_max, dist_shift, x, sigmas)
    return _run(samplers.pingpong, model, x, times, callback, disable_tqdm, extra_args)


@torch.no_grad()
def sample_k(
    model_fn: Network,
    noise: Tensor,
    init_data: Tensor | None = None,
    steps: int = 100,
    sampler_type: str = "dpmpp-2m-sde",
    sigma_min: float = 0.01,
    sigma_max: float = 100,
    rho: float = 1.0,
    device: str | torch.device = "cuda",
    callback: Callback | None = None,
    cond_fn: Callable[..., Tensor] | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """Sample a v network, from noise or from `init_data` with noise of `sigma_max`; `device` belongs to the noise."""
    sampler = find_sampler(sampler_type, V)
    span = Span(V, steps, sampler.first_time(sigma_max), sigma_min, rho, device=noise.device)
    times = find_schedule(sampler.schedule)(span)
    x = sampler.first_state(times, noise, init_data, V)
    run = sampler.run
    if cond_fn is not None:
        run = _with_gradient(sampler, partial(cond_fn, **extra_args))
    return _run(run, model_fn, x, times, callback, disable_tqdm, extra_args)


@torch.no_grad()
def sample_rf(
    model_fn: Network,
    noise: Tensor,
    init_data: Tensor | None = None,
    steps: int = 100,
    sampler_type: str = "euler",
    sigma_max: float = 1,
    device: str | torch.device = "cuda",
    callback: Callback | None = None,
    cond_fn: Callable[..., Tensor] | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """Sample a flow, from noise or from `init_data` at time `sigma_max`; `dist_shift` is for rk4, as published."""
    sampler = find_sampler(sampler_type, RECTIFIED_FLOW)
    if cond_fn is not None:
        raise ValueError("cond_fn works with the samplers of sample_k only")
    shift = dist_shift if sampler_type == "rk4" else None
    span = Span(RECTIFIED_FLOW, steps, sampler.first_time(sigma_max), shift=shift, frames=noise.shape[-1])
    times = find_schedule("shifted" if shift is not None else sampler.schedule)(span)
    x = sampler.first_state(times, noise, init_data, RECTIFIED_FLOW)
    return _run(sampler.run, model_fn, x, times, callback, disable_tqdm, extra_args)


def _times(
    steps: int | None, start: float, shift: DistributionShift | None, x: Tensor, given: Tensor | None = None
) -> Tensor:
    """The times given, or equal steps, shifted if there is a shift."""
    if given is not None:
        return torch.as_tensor(given).detach().cpu().double()
    if steps is None:
        raise ValueError("give steps, or the times themselves as sigmas")
    span = Span(RECTIFIED_FLOW, steps, start, shift=shift, frames=x.shape[-1])
    return find_schedule("linear" if shift is None else "shifted")(span)


def get_bmask(i: int, steps: int, mask: Tensor) -> Tensor:
    """1 where a soft mask is generated by step i already, else 0."""
    return (mask <= (i + 1) / steps).long()


def make_cond_model_fn(model: Callable[..., Tensor], cond_fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A denoiser of k-diffusion whose data is moved by sigma^2 times the gradient that `cond_fn` computes."""

    def denoise(x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = model(x, sigma, **options)
            gradient = cond_fn(x, sigma, denoised=denoised, **options).detach()
        return denoised.detach() + gradient * sigma.square().reshape(-1, *[1] * (x.ndim - 1))

    return denoise


def _run(
    run: Sampler,
    network: Network,
    x: Tensor,
    times: Tensor,
    callback: Callback | None,
    quiet: bool,
    extra_args: dict[str, Any],
) -> Tensor:
    total = len(times) - 1
    with progress_of(not quiet, total) as progress:
        watch = Watch(callback, None, progress, total)
        return run(CalledNetwork(network, extra_args), x, times, ProcessNoise(), watch)


def _with_gradient(sampler: SamplerInfo, cond_fn: Callable[..., Tensor]) -> Sampler:
    if not sampler.starts_by_ratio:
        raise ValueError("cond_fn works with k-diffusion's samplers only; choose another sampler_type")

    def run(denoiser: Any, x: Tensor, times: Tensor, noise: Any, watch: Watch) -> Tensor:
        return sampler.run(GradientDenoiser(denoiser, cond_fn), x, times, noise, watch)

    return run
