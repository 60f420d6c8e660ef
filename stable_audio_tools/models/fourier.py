"""Random Fourier features of a few numbers, such as a noise level."""

import math

import torch
from torch import Tensor, nn

from stable_audio_tools.models.precision import FullPrecision


class FourierFeatures(FullPrecision, nn.Module):
    """Cosines and sines at learned frequencies: (b, in_features) -> (b, out_features), in float32 or more."""

    def __init__(self, in_features: int, out_features: int, std: float = 1.0) -> None:
        super().__init__()
        if out_features % 2:
            raise ValueError(f"out_features is {out_features}; half are cosines and half sines, so it must be even")
        self.weight = nn.Parameter(std * torch.randn(out_features // 2, in_features))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        phases = 2 * math.pi * x.to(dtype) @ self.weight.T.to(dtype)
        return torch.cat([phases.cos(), phases.sin()], dim=-1)
