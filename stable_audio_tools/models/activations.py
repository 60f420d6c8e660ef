"""Periodic activations."""

import torch
from torch import Tensor, nn

_TINY = 1e-9  # keeps the reciprocal finite


def snake(x: Tensor, frequency: Tensor, sharpness: Tensor) -> Tensor:
    """Return x + sin^2(frequency * x) / sharpness (Ziyin et al. 2020, eq. 3); the tensors broadcast to (b, c, n)."""
    gain = (sharpness + _TINY).reciprocal()
    if torch.is_grad_enabled():
        return x + gain * torch.sin(x * frequency).pow(2)
    wave = (x * frequency).sin_()  # one scratch tensor: at inference this activation is bound by memory traffic
    return torch.addcmul(x, wave.mul_(wave), gain, out=wave)


class Snake1d(nn.Module):
    """Snake with one frequency per channel, stored on a linear scale, as in descript-audio-codec."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n)
        return snake(x, self.alpha, self.alpha)


class SnakeBeta(nn.Module):
    """Snake with separate frequency and sharpness per channel; on a log scale both are stored as their logarithm."""

    def __init__(
        self, in_features: int, alpha: float = 1.0, alpha_trainable: bool = True, alpha_logscale: bool = True
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.alpha_logscale = alpha_logscale
        start = 0.0 if alpha_logscale else alpha
        self.alpha = nn.Parameter(torch.full((in_features,), start), requires_grad=alpha_trainable)
        self.beta = nn.Parameter(torch.full((in_features,), start), requires_grad=alpha_trainable)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n)
        alpha, beta = self.alpha[:, None], self.beta[:, None]
        return snake(x, alpha.exp(), beta.exp()) if self.alpha_logscale else snake(x, alpha, beta)
