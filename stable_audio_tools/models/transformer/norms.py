"""Normalisation and scaling of channels."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """Layer norm whose offset is trained only on request; gain and offset are in every state dict either way."""

    gamma: Tensor
    beta: Tensor

    def __init__(
        self, dim: int, bias: bool = False, fix_scale: bool = False, force_fp32: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.eps = eps
        self.force_fp32 = force_fp32
        self._hold("gamma", torch.ones(dim), trained=not fix_scale)
        self._hold("beta", torch.zeros(dim), trained=bias)

    def _hold(self, name: str, value: Tensor, trained: bool) -> None:
        if trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1:]
        if self.force_fp32:
            return F.layer_norm(x.float(), width, self.gamma.float(), self.beta.float(), self.eps).to(x.dtype)
        return F.layer_norm(x, width, self.gamma, self.beta, self.eps)


class RMSNorm(nn.Module):
    """Scale to a root mean square of one, times a gain (Zhang & Sennrich 2019)."""

    gamma: Tensor

    def __init__(self, dim: int, fix_scale: bool = False, force_fp32: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.force_fp32 = force_fp32
        if fix_scale:
            self.register_buffer("gamma", torch.ones(dim))
        else:
            self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1:]
        if self.force_fp32:
            return F.rms_norm(x.float(), width, self.gamma.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, width, self.gamma, self.eps)


class DynamicTanh(nn.Module):
    """tanh(alpha * x), scaled and shifted: a norm without statistics (Zhu et al. 2025, "Transformers without norm")."""

    def __init__(self, dim: int, init_alpha: float = 10.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), init_alpha))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * torch.tanh(self.alpha * x) + self.beta


NormType = Literal["layer_norm", "rms_norm", "dyt"]


def make_norm(kind: NormType, dim: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A norm over `dim` channels; dynamic tanh, which has no statistics, takes none of the options."""
    if kind == "dyt":
        return DynamicTanh(dim, init_alpha=4.0)
    options = options or {}
    if kind == "layer_norm":
        return LayerNorm(dim, **options)
    if "bias" in options:
        raise ValueError("norm_kwargs.bias: an RMS norm has no offset; remove the key")
    return RMSNorm(dim, **options)


class LayerScale(nn.Module):
    """A learned gain per channel that starts near zero (Touvron et al. 2021)."""

    def __init__(self, dim: int, init_val: float = 1e-5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init_val))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class RunningInstanceNorm(nn.Module):
    """Channels brought to the running mean and deviation of training, bounded by asinh, times one gain."""

    running_mean: Tensor
    running_std: Tensor

    def __init__(
        self, dim: int, momentum: float = 0.99, eps: float = 1e-4, saturate: bool = True, trainable_gain: bool = True
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.saturate = saturate
        self.gain = nn.Parameter(torch.ones(1)) if trainable_gain else None
        self.register_buffer("running_mean", torch.zeros(1, 1, dim))
        self.register_buffer("running_std", torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:  # (b, n, d) -> (b, n, d)
        if self.training:
            frames = x.detach().flatten(0, 1)
            self.running_mean = self.running_mean.lerp(frames.mean(0)[None, None], 1 - self.momentum)
            self.running_std = self.running_std.lerp(frames.std(0)[None, None], 1 - self.momentum).clamp(min=self.eps)
        x = (x - self.running_mean) / self.running_std
        x = x.asinh() if self.saturate else x
        return x if self.gain is None else x * self.gain
