"""What a diffusion model predicts, and how much data and noise there is at time t: 0 is data, 1 is noise."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DiffusionObjective = Literal["v", "rectified_flow", "rf_denoiser"]


class Mix(NamedTuple):
    """x_t = alpha * data + sigma * noise."""

    alpha: Tensor
    sigma: Tensor


def mix_at(t: Tensor, objective: DiffusionObjective) -> Mix:
    """Cosine schedule for v (Salimans & Ho 2022), straight line for flows (Liu et al. 2022)."""
    if objective == "v":
        angle = t * (math.pi / 2)
        return Mix(angle.cos(), angle.sin())
    return Mix(1 - t, t)


def noise_level(t: Tensor, objective: DiffusionObjective) -> Tensor:
    """The sigma of `mix_at`."""
    return mix_at(t, objective).sigma


def corrupt(data: Tensor, noise: Tensor, t: Tensor, objective: DiffusionObjective) -> tuple[Tensor, Tensor]:
    """data, noise (b, d, n), t (b,) -> x_t and what the model should predict from it"""
    alpha, sigma = (part[:, None, None].to(data) for part in mix_at(t, objective))
    corrupted = data * alpha + noise * sigma
    target = noise * alpha - data * sigma if objective == "v" else noise - data
    return corrupted, target


def predict_data(x: Tensor, output: Tensor, t: Tensor, objective: DiffusionObjective) -> Tensor:
    """The clean data that a prediction `output` at x_t implies, t (b,)."""
    alpha, sigma = (part[:, None, None].to(x) for part in mix_at(t, objective))
    return x * alpha - output * sigma if objective == "v" else x - sigma * output


def predict_noise(x: Tensor, output: Tensor, t: Tensor, objective: DiffusionObjective) -> Tensor:
    """The noise that a prediction `output` at x_t implies, t (b,)."""
    alpha, sigma = (part[:, None, None].to(x) for part in mix_at(t, objective))
    return x * sigma + output * alpha if objective == "v" else x + alpha * output


def ratio_at(t: Tensor, objective: DiffusionObjective) -> Tensor:
    """sigma / alpha, from 0 at data to infinity at noise."""
    return torch.tan(t * (math.pi / 2)) if objective == "v" else t / (1 - t)


def time_at_ratio(ratio: Tensor, objective: DiffusionObjective) -> Tensor:
    """The inverse of `ratio_at`."""
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
