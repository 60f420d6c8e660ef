"""What a diffusion model predicts, and how much data and noise there is at time t: 0 is data, 1 is noise."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.config import build
from stable_audio_tools.models.diffusion.ddpm import DDPM

NamedObjective = Literal["v", "rectified_flow", "rf_denoiser"]
DiffusionObjective = NamedObjective | DDPM


def read_objective(node: Any, path: str = "diffusion_objective") -> DiffusionObjective:
    """What a config says: a name, or a node `{"type": "ddpm", "config": {...}}`."""
    if not isinstance(node, Mapping):
        named: DiffusionObjective = node
        return named
    objective: DDPM = build("objective", node, path)
    return objective


def name_of(objective: DiffusionObjective) -> str:
    """By which samplers are found."""
    return "ddpm" if isinstance(objective, DDPM) else objective


class Mix(NamedTuple):
    """x_t = alpha * data + sigma * noise."""

    alpha: Tensor
    sigma: Tensor


def mix_at(t: Tensor, objective: DiffusionObjective) -> Mix:
    """Cosine schedule for v (Salimans & Ho 2022), straight line for flows (Liu et al. 2022), or the table."""
    if isinstance(objective, DDPM):
        return Mix(*objective.mix(t))
    if objective == "v":
        angle = t * (math.pi / 2)
        return Mix(angle.cos(), angle.sin())
    return Mix(1 - t, t)


def noise_level(t: Tensor, objective: DiffusionObjective) -> Tensor:
    """The sigma of `mix_at`."""
    return mix_at(t, objective).sigma


def corrupt(data: Tensor, noise: Tensor, t: Tensor, objective: DiffusionObjective) -> tuple[Tensor, Tensor]:
    """data, noise (b, d, n), t (b,) -> x_t and what the model should predict from it"""
    mix = _spread(t, data, objective)
    return data * mix.alpha + noise * mix.sigma, _prediction(data, noise, mix, objective)


def predict_data(x: Tensor, output: Tensor, t: Tensor, objective: DiffusionObjective) -> Tensor:
    """The clean data that a prediction `output` at x_t implies, t (b,)."""
    alpha, sigma = _spread(t, x, objective)
    kind = _predicted(objective)
    if kind == "v":
        return x * alpha - output * sigma
    if kind == "flow":
        return x - sigma * output
    return output if kind == "sample" else (x - sigma * output) / alpha


def predict_noise(x: Tensor, output: Tensor, t: Tensor, objective: DiffusionObjective) -> Tensor:
    """The noise that a prediction `output` at x_t implies, t (b,)."""
    alpha, sigma = _spread(t, x, objective)
    kind = _predicted(objective)
    if kind == "v":
        return x * sigma + output * alpha
    if kind == "flow":
        return x + alpha * output
    return output if kind == "epsilon" else (x - alpha * output) / sigma


def prediction_of(data: Tensor, x: Tensor, t: Tensor, objective: DiffusionObjective) -> Tensor:
    """What the model would predict at x_t if it knew the data; t (b,), above 0."""
    mix = _spread(t, x, objective)
    return _prediction(data, (x - mix.alpha * data) / mix.sigma, mix, objective)


def loss_weight(t: Tensor, objective: DiffusionObjective) -> Tensor | None:
    """Weights (b,) of squared errors in training; None: all alike."""
    return objective.loss_weight(t) if isinstance(objective, DDPM) else None


def training_times(t: Tensor, objective: DiffusionObjective) -> Tensor:
    """Times drawn from [0, 1], as the objective has them."""
    return objective.on_table(t) if isinstance(objective, DDPM) else t


def _spread(t: Tensor, like: Tensor, objective: DiffusionObjective) -> Mix:
    alpha, sigma = mix_at(t, objective)
    return Mix(alpha[:, None, None].to(like), sigma[:, None, None].to(like))


def _predicted(objective: DiffusionObjective) -> Literal["v", "flow", "epsilon", "sample"]:
    if isinstance(objective, DDPM):
        return objective.prediction_type
    return "v" if objective == "v" else "flow"


def _prediction(data: Tensor, noise: Tensor, mix: Mix, objective: DiffusionObjective) -> Tensor:
    kind = _predicted(objective)
    if kind == "v":
        return noise * mix.alpha - data * mix.sigma
    if kind == "flow":
        return noise - data
    return data if kind == "sample" else noise


def ratio_at(t: Tensor, objective: DiffusionObjective) -> Tensor:
    """sigma / alpha, from 0 at data to infinity at noise, or to the last of the table."""
    if isinstance(objective, DDPM):
        return objective.ratio(t)
    return torch.tan(t * (math.pi / 2)) if objective == "v" else t / (1 - t)


def time_at_ratio(ratio: Tensor, objective: DiffusionObjective) -> Tensor:
    """The inverse of `ratio_at`."""
    if isinstance(objective, DDPM):
        return objective.time(ratio)
    return torch.atan(ratio) / (math.pi / 2) if objective == "v" else 1 / (1 + 1 / ratio)


class DistributionShift:
    """Moves times towards noise, the more the longer the sequence (Esser et al. 2024, section 5.3.2)."""

    def __init__(
        self,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        max_length: float = 4096,
        min_length: float = 256,
        use_sine: bool = False,
    ) -> None:
        if max_length <= min_length:
            raise ValueError(f"max_length is {max_length}; it must be more than min_length, which is {min_length}")
        self.base_shift = base_shift
        self.max_shift = max_shift
        self.max_length = max_length
        self.min_length = min_length
        self.use_sine = use_sine

    def time_shift(self, t: Tensor, seq_len: int) -> Tensor:
        """Times in [0, 1] for a sequence of `seq_len` latent frames; 0 and 1 stay where they are."""
        length = min(max(seq_len, self.min_length), self.max_length)
        share = (length - self.min_length) / (self.max_length - self.min_length)
        odds = math.exp(-(self.base_shift + (self.max_shift - self.base_shift) * share))
        shifted = 1 - odds / (odds + (1 / (1 - t) - 1))
        return torch.sin(shifted * (math.pi / 2)) if self.use_sine else shifted
