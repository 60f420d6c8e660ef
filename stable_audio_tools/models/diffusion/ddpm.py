"""The objective of denoising diffusion probabilistic models (Ho et al. 2020): a table of noise levels.

Times run from 0 at data to 1 at the noisiest level: t = i / T is entry i of the T that the table has, counted from 1.
In between, log(sigma / alpha) is interpolated, so that samplers in continuous time can run the same network.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.models.diffusion.guidance import Denoiser, Guided
from stable_audio_tools.models.diffusion.objectives import Mix, Objective, Recommended, V, Velocity

_MOST_BETA = 0.999  # of the cosine schedule (Nichol & Dhariwal 2021, section 3.2)
_COSINE_OFFSET = 0.008
_ROUNDING = 1e-3  # how far a float32 time may lie beside the table entry that it stands for


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.beta_end <= config.beta_start:
        yield "beta_end", f"is {config.beta_end}, not above beta_start, {config.beta_start}; exchange or widen them"


@register("objective", "ddpm", check=_check)
@dataclass(frozen=True)
class DDPMObjective(Objective):
    """A table of noise levels, and a network that predicts the noise, the data or v."""

    num_train_timesteps: Annotated[int, Field(ge=2, description="noise levels of the table")] = 1000
    beta_schedule: Annotated[
        Literal["linear", "scaled_linear", "cosine"],
        Field(description="how the noise added per level grows; scaled_linear: linear in its square root"),
    ] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1, description="variance added at the first level")] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1, description="variance added at the last level")] = 0.02
    prediction_type: Annotated[
        Literal["epsilon", "sample", "v"], Field(description="what the network predicts: noise, data or v")
    ] = "epsilon"
    clip_sample: Annotated[
        float | None,
        Field(gt=0, description="samplers ddpm and ddim keep predicted data within this; for data of known range"),
    ] = None
    min_snr: Annotated[
        float | None, Field(gt=0, description="weigh the loss by min-SNR with this gamma (Hang et al. 2023); usually 5")
    ] = None

    name = "ddpm"
    recommended = Recommended(50, 3.0, "ddim")
    default_sampler = "ddim"
    invertible_sampler = "ddim"

    def mix(self, t: Tensor) -> Mix:
        ratio = self._ratio(t)
        alpha = torch.rsqrt(1 + ratio.square())  # the squares of the shares add up to 1
        return Mix(alpha.to(_wide(t)), (ratio * alpha).to(_wide(t)))

    def ratio(self, t: Tensor) -> Tensor:
        return self._ratio(t).to(_wide(t))

    def time(self, ratio: Tensor) -> Tensor:
        """Inverse of `ratio`; 1 for ratios above the table's last."""
        ratios = _ratios(self, _exact(ratio.device), ratio.device)
        wanted = ratio.to(ratios).contiguous()
        entry = torch.searchsorted(ratios, wanted).clamp(1, len(ratios) - 1)
        low, high = ratios[entry - 1], ratios[entry]
        inside = torch.where(low > 0, (wanted / low).log() / (high / low).log(), wanted / high)
        return ((entry - 1 + inside) / self.num_train_timesteps).clamp(0, 1).to(ratio)

    def target(self, data: Tensor, noise: Tensor, mix: Mix) -> Tensor:
        if self.prediction_type == "v":
            return Velocity.target(data, noise, mix)
        return data if self.prediction_type == "sample" else noise

    def data(self, x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        if self.prediction_type == "v":
            return Velocity.data(x, output, mix)
        return output if self.prediction_type == "sample" else (x - mix.sigma * output) / mix.alpha

    def noise(self, x: Tensor, output: Tensor, mix: Mix) -> Tensor:
        if self.prediction_type == "v":
            return Velocity.noise(x, output, mix)
        return output if self.prediction_type == "epsilon" else (x - mix.alpha * output) / mix.sigma

    def position(self, t: Tensor) -> Tensor:
        """The entry of the table, counted from 0, with fractions between entries, in float32 or more."""
        position = t.to(_exact(t.device)) * self.num_train_timesteps - 1
        nearest = position.round()
        return torch.where((position - nearest).abs() < _ROUNDING, nearest, position).clamp(min=0).to(_wide(t))

    def training_times(self, t: Tensor) -> Tensor:
        """Times rounded up to the next entry of the table."""
        return (t * self.num_train_timesteps).floor().add(1).clamp(max=self.num_train_timesteps) / (
            self.num_train_timesteps
        )

    def loss_weight(self, t: Tensor) -> Tensor | None:
        """min-SNR weights (b,) of squared errors; None without `min_snr`."""
        if self.min_snr is None:
            return None
        snr = self._ratio(t).pow(-2)
        kept = snr.clamp(max=self.min_snr)
        weights = {"epsilon": kept / snr, "sample": kept, "v": kept / (snr + 1)}
        return weights[self.prediction_type].to(t)

    @property
    def table_size(self) -> int:
        return self.num_train_timesteps

    @property
    def largest_ratio(self) -> float:
        return float(_ratios(self, torch.float64, torch.device("cpu"))[-1])

    @property
    def continuous(self) -> Objective:
        return V

    def continuous_denoiser(self, denoiser: Denoiser) -> Denoiser:
        return VelocityDenoiser(denoiser, self)

    def restrict(self, data: Tensor) -> Tensor:
        return data if self.clip_sample is None else data.clamp(-self.clip_sample, self.clip_sample)

    def unrestricted(self) -> Objective:
        return replace(self, clip_sample=None)

    def _ratio(self, t: Tensor) -> Tensor:
        ratios = _ratios(self, _exact(t.device), t.device)
        position = t.to(ratios) * self.num_train_timesteps
        entry = position.floor().clamp(0, self.num_train_timesteps - 1)
        inside = position - entry
        low, high = ratios[entry.long()], ratios[entry.long() + 1]
        # The first stretch starts at 0, whose logarithm is infinite.
        return torch.where(low > 0, low * (high / low.clamp(min=1e-30)) ** inside, high * inside)


def _wide(t: Tensor) -> torch.dtype:
    """That of t, or float32 where t is in half precision, which cannot distinguish the entries of a table."""
    return torch.promote_types(t.dtype, torch.float32)


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache(maxsize=64)
def _ratios(objective: DDPMObjective, dtype: torch.dtype, device: torch.device) -> Tensor:
    """sigma / alpha at t = 0, 1/T ... 1."""
    left = torch.cumprod(1 - betas(objective), dim=0)
    return torch.cat([left.new_zeros(1), ((1 - left) / left).sqrt()]).to(dtype=dtype, device=device)


def betas(objective: DDPMObjective) -> Tensor:
    """Variance added at each level, (T,) float64."""
    count, low, high = objective.num_train_timesteps, objective.beta_start, objective.beta_end
    if objective.beta_schedule == "linear":
        return torch.linspace(low, high, count, dtype=torch.float64)
    if objective.beta_schedule == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, count, dtype=torch.float64).square()
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    left = torch.cos((edges + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * torch.pi / 2).square()
    return (1 - left[1:] / left[:-1]).clamp(max=_MOST_BETA)


class VelocityDenoiser:
    """A network trained on a table, as one that predicts v at cosine times.

    Both mix data and noise so that the squares of the shares add up to 1: only the time and the output differ.
    """

    def __init__(self, denoiser: Denoiser, objective: DDPMObjective) -> None:
        self._denoiser, self._objective = denoiser, objective

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        there = self._time(t)
        return self._velocity(x, self._denoiser(x, there.to(x)), t, there)

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        there = self._time(t)
        outputs = self._denoiser.guided(x, there.to(x))
        return Guided(*(self._velocity(x, output, t, there) for output in outputs))

    def _time(self, t: Tensor) -> Tensor:
        exact = t if t.device.type == "mps" else t.double()
        return self._objective.time(V.ratio(exact))

    def _velocity(self, x: Tensor, output: Tensor, t: Tensor, there: Tensor) -> Tensor:
        alpha, sigma = (part[:, None, None].to(x) for part in V.mix(t))
        noise = self._objective.predict_noise(x, output, there)
        return alpha * noise - sigma * self._objective.predict_data(x, output, there)
