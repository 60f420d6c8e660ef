"""Schedules of generation 0.0.20: equal steps, moved by a distribution shift, for the length of each item."""

import torch
from torch import Tensor

from stable_audio_tools.models.diffusion.distribution_shift import Shift


def build_schedule(
    steps: int,
    sigma_max: float = 1.0,
    dist_shift: Shift | None = None,
    effective_seq_len: int | Tensor | None = None,
    fallback_seq_len: int | None = None,
    include_endpoint: bool = True,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Times (steps + 1,) from `sigma_max` down to 0, or (steps,) without the 0.

    Lengths per item (b,) give a row of times per item. The first time stays at `sigma_max` whatever the shift does,
    so the level may rise after it where a run does not start from pure noise.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    times = torch.linspace(sigma_max, 0, steps + 1, device=device)
    times = times if include_endpoint else times[:-1]
    if dist_shift is None:
        return times
    length = fallback_seq_len if effective_seq_len is None else effective_seq_len
    if length is None:
        raise ValueError("a distribution shift needs the length of the sequence: effective_seq_len or fallback_seq_len")
    if isinstance(length, Tensor) and length.ndim == 1:
        length = length.to(device).clamp(min=1)[:, None]
    elif not isinstance(length, Tensor):
        length = max(int(length), 1)
    shifted = dist_shift.shift(times, length).clone()
    shifted[..., 0] = sigma_max
    return shifted
