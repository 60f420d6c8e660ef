"""Random Fourier features of a few numbers, such as a noise level."""

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Cosines and sines at learned frequencies: (b, in_features) -> (b, out_features)."""

    def __init__(self, in_features: int, out_features: int, std: float = 1.0) -> None:
        super().__init__()
        if out_features % 2:
            raise ValueError(f"out_features is {out_features}; half are cosines and half sines, so it must be even")
        self.weight = nn.Parameter(std * torch.randn(out_features // 2, in_features))

    def forward(self, x: Tensor) -> Tensor:
        phases = 2 * math.pi * x @ self.weight.T
        return torch.cat([phases.cos(), phases.sin()], dim=-1)
