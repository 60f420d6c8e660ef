"""Rectified-flow inversion (Rout et al. 2024): from data back to the noise that leads to it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_FIRST_LOGSNR, _LAST_LOGSNR = -6.0, 2.0


@torch.no_grad()
def invert_audio(
    model: Callable[..., Tensor],
    waveform_latent: Tensor,
    noise: Tensor | None = None,
    inversion_params: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    **conditioning_inputs: Any,
) -> Tensor:
    """Return the noise from which a flow leads to latents (b, d, t); other keywords go to the network.

    `inversion_params`: `inversion_steps` (100); `inversion_gamma` (0.3), the share of the drift towards `noise`, 0 for
    the model's own flow; `inversion_sigma_max` (1), where the schedule ends; `inversion_cfg_scale` (1), which must be 1
    for an exact inversion, because at t = 0 guidance has no direction.
    """
    params = dict(inversion_params or {})
    gamma = params.get("inversion_gamma", 0.3)
    x = waveform_latent if device is None else waveform_latent.to(device)
    aim = torch.randn_like(x) if noise is None else noise.to(x)
    inputs = {**conditioning_inputs, "cfg_scale": params.get("inversion_cfg_scale", 1.0)}
    times = _times(params.get("inversion_steps", 100), params.get("inversion_sigma_max", 1.0))
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist()):
        velocity = model(x, x.new_full((len(x),), t), **inputs)
        x = x + (t_next - t) * (velocity + gamma * ((aim - x) - velocity))
    return x


def _times(steps: int, last: float) -> Tensor:
    """Even steps in log-SNR from 0 to 1; below 1, `last` only sets how close the last step but one comes."""
    first = math.log((1 - last) / last + 1e-6) if last < 1 else _FIRST_LOGSNR
    times = torch.sigmoid(-torch.linspace(_LAST_LOGSNR, first, steps + 1, dtype=torch.float64))
    times[0], times[-1] = 0.0, 1.0
    return times
