"""Objectives: what a diffusion model predicts, and how much data and noise there is at time t: 0 is data, 1 is noise.

An objective is an object; the string in a config names one, here (`parse_objective`) and nowhere else.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.config import build, register
from stable_audio_tools.models.diffusion.guidance import Denoiser

NamedObjective = Literal["v", "rectified_flow", "rf_denoiser"]

_DEFAULT_STEPS = 1000  # levels counted by networks that read integer steps, for objectives without a table


class Mix(NamedTuple):
    """x_t = alpha * data + sigma * noise."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Recommended:
    """Sampling settings for requests that leave them open."""

    steps: int
    cfg_scale: float
    sampler_type: str
    sigma_min: float = 0.01
    sigma_max: float | None = None


class Objective(ABC):
    """A prediction target at x_t, with the shares of data and noise in x_t.

    To add one, subclass this or an objective of its family, and register it under kind "objective". Samplers that suit
    a class suit its subclasses.
    """

    name: str  # in configs and messages
    recommended: Recommended
    default_sampler: str  # for sampler_type null in the published functions
    invertible_sampler: str  # deterministic, with the same steps as `inference.sampling.ddpm_samplers.invert_ddim`

    @property
    def table_size(self) -> int | None:
        """Noise levels of a network that was trained on a table of them."""
        return None

    @property
    def largest_ratio(self) -> float:
        """sigma / alpha of the noisiest level."""
        return math.inf

    @abstractmethod
    def mix(self, t: Tensor) -> Mix:
        """Shares of data and of noise at times in [0, 1]."""

    @abstractmethod
    def ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha, from 0 at data to `largest_ratio`."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """Inverse of `ratio`."""

    @abstractmethod
    def target(self, data: Tensor, noise: Tensor, mix: Mix) -> Tensor:
        """The prediction of a perfect network at x_t; `mix` broadcasts with data and noise."""

    @abstractmethod
    def data(self, x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        """The clean data that a prediction `output` at x_t implies."""

    @abstractmethod
    def noise(self, x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        """The noise that a prediction `output` at x_t implies."""

    def noise_level(self, t: Tensor) -> Tensor:
        """The sigma of `mix`."""
        return self.mix(t).sigma

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """data, noise (b, d, n), t (b,) -> x_t and the target of the network there"""
        mix = self._mix_like(t, data)
        return data * mix.alpha + noise * mix.sigma, self.target(data, noise, mix)

    def predict_data(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The clean data that a prediction `output` (b, d, n) at x_t implies, t (b,)."""
        return self.data(x, output, self._mix_like(t, x))

    def predict_noise(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction `output` (b, d, n) at x_t implies, t (b,)."""
        return self.noise(x, output, self._mix_like(t, x))

    def prediction_for(self, data: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x_t of a network that knows the data; t (b,), above 0."""
        mix = self._mix_like(t, x)
        return self.target(data, (x - mix.alpha * data) / mix.sigma, mix)

    def loss_weight(self, t: Tensor) -> Tensor | None:
        """Weights (b,) of squared errors in training; None: all alike."""
        return None

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return weights (b,) of squared errors, min(SNR, gamma) on the scale of the data (Hang et al. 2023)."""
        alpha, sigma = self.mix(t.to(torch.promote_types(t.dtype, torch.float32)))
        slope = self.data(torch.zeros_like(sigma), torch.ones_like(sigma), Mix(alpha, sigma))
        return ((alpha / sigma).square().clamp(max=gamma) * slope.square()).to(t)

    def training_times(self, t: Tensor) -> Tensor:
        """Times drawn from [0, 1], moved to those that the network is trained at."""
        return t

    def position(self, t: Tensor) -> Tensor:
        """Times for networks that count noise levels from 0."""
        return t * _DEFAULT_STEPS

    @property
    def continuous(self) -> "Objective":
        """The objective of `continuous_denoiser`."""
        return self

    def continuous_denoiser(self, denoiser: Denoiser) -> Denoiser:
        """The network as samplers in continuous time call it."""
        return denoiser

    def restrict(self, data: Tensor) -> Tensor:
        """Predicted data, within the range that sampling keeps it in."""
        return data

    def unrestricted(self) -> "Objective":
        """This objective with a `restrict` that changes nothing."""
        return self

    def _mix_like(self, t: Tensor, like: Tensor) -> Mix:
        alpha, sigma = self.mix(t)
        return Mix(alpha[:, None, None].to(like), sigma[:, None, None].to(like))

    def __str__(self) -> str:
        return self.name


class Velocity:
    """Targets and predictions in terms of v = alpha * noise - sigma * data, where alpha^2 + sigma^2 = 1."""

    @staticmethod
    def target(data: Tensor, noise: Tensor, mix: Mix) -> Tensor:
        return noise * mix.alpha - data * mix.sigma

    @staticmethod
    def data(x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        return x * mix.alpha - output * mix.sigma

    @staticmethod
    def noise(x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        return x * mix.sigma + output * mix.alpha


@register("objective", "v")
@dataclass(frozen=True)
class VObjective(Velocity, Objective):
    """Velocity on the cosine schedule (Salimans & Ho 2022)."""

    name = "v"
    recommended = Recommended(100, 7.0, "dpmpp-3m-sde", 0.3, 500.0)  # from the cards of the Stable Audio models
    default_sampler = "dpmpp-2m-sde"
    invertible_sampler = "v-ddim"

    def mix(self, t: Tensor) -> Mix:
        angle = t * (math.pi / 2)
        return Mix(angle.cos(), angle.sin())

    def ratio(self, t: Tensor) -> Tensor:
        return torch.tan(t * (math.pi / 2))

    def time(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio) / (math.pi / 2)


@register("objective", "rectified_flow")
@dataclass(frozen=True)
class FlowObjective(Objective):
    """Velocity on the straight line from data to noise (Liu et al. 2022)."""

    name = "rectified_flow"
    recommended = Recommended(50, 7.0, "euler")
    default_sampler = "euler"
    invertible_sampler = "euler"

    def mix(self, t: Tensor) -> Mix:
        return Mix(1 - t, t)

    def ratio(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def time(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / ratio)

    def target(self, data: Tensor, noise: Tensor, mix: Mix) -> Tensor:
        return noise - data

    def data(self, x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        return x - mix.sigma * output

    def noise(self, x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        return x + mix.alpha * output


@register("objective", "rf_denoiser")
@dataclass(frozen=True)
class DistilledFlowObjective(FlowObjective):
    """A flow whose network was distilled to predict the data in few steps."""

    name = "rf_denoiser"
    recommended = Recommended(8, 1.0, "pingpong")


V = VObjective()
RECTIFIED_FLOW = FlowObjective()


def parse_objective(node: "Objective | str | Mapping[str, object]", path: str = "diffusion_objective") -> Objective:
    """Return the objective that a config names, by a string or a node `{"type": "ddpm", "config": {...}}`."""
    if isinstance(node, Objective):
        return node
    objective: Objective = build("objective", {"type": node} if isinstance(node, str) else node, path)
    return objective


class HasObjective:
    """A module with an objective; the published attribute `diffusion_objective` is the name of it."""

    objective: Objective

    @property
    def diffusion_objective(self) -> str:
        return self.objective.name

    @diffusion_objective.setter
    def diffusion_objective(self, value: "Objective | str | Mapping[str, object]") -> None:
        self.objective = parse_objective(value)
