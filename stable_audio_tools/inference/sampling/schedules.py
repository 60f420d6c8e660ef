"""Noise schedules by name: the times at which a sampler stops, from the first down to 0, the data.

A schedule is a function of a `Span`. Times are float64 and on the CPU: samplers read them without waiting for a GPU.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.models.diffusion.distribution_shift import Shift
from stable_audio_tools.models.diffusion.objectives import Objective

logger = logging.getLogger(__name__)

_FIRST_LOGSNR, _LAST_LOGSNR = -6.0, 2.0  # log(alpha / sigma), as published for flows
_LARGEST_RATIO = 100.0  # sigma / alpha in place of the infinite ratio of pure noise


@dataclass(frozen=True)
class Span:
    """The range of a schedule: `steps` steps from time `start`, where 1 is pure noise, to 0."""

    objective: Objective
    steps: int
    start: float = 1.0
    sigma_min: float = 0.01  # smallest sigma / alpha before the last step, of `polyexponential`
    rho: float = 1.0  # 1: evenly in log sigma; larger: more steps at little noise
    shift: Shift | None = None
    frames: int = 0  # length of the latents, which `shift` depends on
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.start <= 1:
            raise ValueError(f"the first time of a schedule must be above 0 and at most 1, got {self.start:g}")
        if self.sigma_min <= 0:
            raise ValueError(f"sigma_min must be above 0, got {self.sigma_min:g}")

    @property
    def first_ratio(self) -> float:
        """Return sigma / alpha at the start."""
        return math.inf if self.start == 1 else float(self.objective.ratio(_double(self.start)))


def linear(span: Span) -> Tensor:
    """Equal steps in t."""
    return torch.linspace(span.start, 0, span.steps + 1, dtype=torch.float64)


def shifted(span: Span) -> Tensor:
    """Equal steps in t, moved towards noise by the model's distribution shift."""
    if span.shift is None:
        raise ValueError(
            "schedule 'shifted' needs a model with distribution_shift_options; use 'linear' or another schedule"
        )
    return span.shift.shift(linear(span), span.frames)


def logsnr(span: Span) -> Tensor:
    """Equal steps in log(alpha / sigma), from -6 (or where the span starts) to 2; the published schedule of flows."""
    first = _FIRST_LOGSNR if span.start == 1 else math.log(1 / span.first_ratio + 1e-6)
    if first > _LAST_LOGSNR:
        logger.warning(
            "schedule 'logsnr' first rises when it starts at t = %g; 'linear' suits so little noise better", span.start
        )
    times = span.objective.time(torch.exp(-torch.linspace(first, _LAST_LOGSNR, span.steps + 1, dtype=torch.float64)))
    times[0], times[-1] = span.start, 0.0
    return times


def polyexponential(span: Span) -> Tensor:
    """sigma / alpha = exp of a ramp to the power rho, then 0; the published schedule of v models."""
    first = min(span.first_ratio, _LARGEST_RATIO) if span.start == 1 else span.first_ratio
    if first <= span.sigma_min and span.steps > 1:
        raise ValueError(
            f"sigma_min is {span.sigma_min:g}, but the schedule starts at {first:g}: sigma_min must be less; "
            "lower it, or start from more noise (sigma_max, init_noise_level)"
        )
    low, high = math.log(span.sigma_min), math.log(first)
    # In float32 on the device, as published: Brownian noise changes with the last digit of a noise level.
    ramp = torch.linspace(1, 0, span.steps, device=span.device) ** span.rho
    ratios = torch.exp(ramp * (high - low) + low).cpu().double()
    times = torch.cat([span.objective.time(ratios), _double(0.0)[None]])
    if span.start == 1:
        times[0] = 1.0
    return times


def leading(span: Span) -> Tensor:
    """Evenly spaced entries of the table, starting at the first; the published schedule of ddpm and ddim."""
    entries = _entries(span)
    stride = entries.covered // span.steps
    chosen = [step * stride + 1 for step in reversed(range(span.steps))]
    return torch.tensor([*chosen, 0], dtype=torch.float64) / entries.of


def trailing(span: Span) -> Tensor:
    """As `leading`, from the last entry down (Lin et al. 2023): few steps then begin with pure noise."""
    entries = _entries(span)
    return torch.linspace(entries.covered, 0, span.steps + 1, dtype=torch.float64).round() / entries.of


class _Entries(NamedTuple):
    """Number of entries of the table that a span covers, and of all entries."""

    covered: int
    of: int


def _entries(span: Span) -> _Entries:
    size = span.objective.table_size
    if size is None:
        raise ValueError("schedules 'leading' and 'trailing' are for the samplers ddpm and ddim; use another one")
    entries = _Entries(round(span.start * size), size)
    if span.steps > entries.covered:
        raise ValueError(
            f"steps is {span.steps}, and from t = {span.start:g} there are {entries.covered} of the {entries.of} noise "
            "levels that the model was trained on; use fewer steps, or start from more noise"
        )
    return entries


Schedule = Callable[[Span], Tensor]
SCHEDULES: dict[str, Schedule] = {
    "logsnr": logsnr,
    "shifted": shifted,
    "linear": linear,
    "polyexponential": polyexponential,
    "leading": leading,
    "trailing": trailing,
}


def find_schedule(name: str) -> Schedule:
    """Return the schedule of this name."""
    if name not in SCHEDULES:
        raise ValueError(f"no schedule named {name!r}; {nearest(name, SCHEDULES)}")
    return SCHEDULES[name]


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
