"""Fourier features of a few numbers, such as a noise level."""

import math

import torch
from torch import Tensor, nn

from stable_audio_tools.models.precision import FullPrecision


class FourierFeatures(FullPrecision, nn.Module):
    """Cosines and sines at random frequencies, trained or fixed: (b, in_features) -> (b, out_features).

    They are computed in float32 or more.
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, std: float = 1.0, trained: bool = True) -> None:
        super().__init__()
        if out_features % 2:
            raise ValueError(f"out_features is {out_features}; half are cosines and half sines, so it must be even")
        frequencies = std * torch.randn(out_features // 2, in_features)
        if trained:
            self.weight = nn.Parameter(frequencies)
        else:
            self.register_buffer("weight", frequencies)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        phases = 2 * math.pi * x.to(dtype) @ self.weight.T.to(dtype)
        return torch.cat([phases.cos(), phases.sin()], dim=-1)


class ExpoFourierFeatures(nn.Module):
    """Cosines and sines at fixed frequencies, evenly spaced on a log scale: (b,) or (b, 1) -> (b, dim).

    The fastest have thousands of periods between 0 and 1, so everything is computed in float32, in the order of
    operations with which published weights were trained.
    """

    def __init__(self, dim: int, min_freq: float = 0.5, max_freq: float = 10000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(
                f"exponential features of width {dim}; half are cosines and half sines, so it must be even"
            )
        self.dim = dim
        self.min_freq = min_freq
        self.max_freq = max_freq

    def forward(self, t: Tensor) -> Tensor:
        t = t.float()
        t = t[:, None] if t.ndim == 1 else t
        low, high = math.log(self.min_freq), math.log(self.max_freq)
        frequencies = torch.exp(torch.linspace(0, 1, self.dim // 2, device=t.device) * (high - low) + low)
        phases = t * frequencies * 2 * math.pi
        return torch.cat([phases.cos(), phases.sin()], dim=-1)


def normalised_log_snr(t: Tensor, low: float = -12.0, high: float = 5.0) -> Tensor:
    """Return log((1 - t) / t), clipped to [low, high] and scaled from 0 at data to 1 at noise."""
    t = t.float().clamp(1e-7, 1 - 1e-7)
    return (high - torch.log((1 - t) / t).clamp(low, high)) / (high - low)
