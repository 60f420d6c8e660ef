"""Periodic activations."""

import torch
from torch import Tensor, nn


class Snake1d(nn.Module):
    """x + sin^2(a x) / a with a learned frequency per channel, on (b, c, n) (Ziyin et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)
