"""Convolutions and activations of the autoencoders.

`Conv1d` and `ConvTranspose1d` keep channels innermost in memory on a CPU at inference. oneDNN then uses tensors in
their layout, where it would reorder them before and after each convolution, and wide layers run up to twice as fast.
Shapes stay (b, c, n); only strides differ. Anti-aliased activations have the state-dict names of alias-free-torch.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.models.activations import SnakeBeta


def keeps_channels_innermost(x: Tensor) -> bool:
    """Return whether convolutions on this tensor are faster with channels innermost in memory."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def as_image(x: Tensor) -> Tensor:
    """Return (b, c, n) as (b, c, 1, n) with channels innermost in memory; copies only if the layout differs."""
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _pair(value: tuple[int, ...] | str, other: int) -> Any:
    """Convert a 1-D option to the option of (1, n) images; `padding` may be a word."""
    return value if isinstance(value, str) else (other, value[0])


class Conv1d(nn.Conv1d):
    """`nn.Conv1d`, faster on a CPU at inference."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not keeps_channels_innermost(input) or self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        convolved = F.conv2d(
            as_image(input),
            weight.unsqueeze(2),
            bias,
            _pair(self.stride, 1),
            _pair(self.padding, 0),
            _pair(self.dilation, 1),
            self.groups,
        )
        return convolved.squeeze(2)


class ConvTranspose1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d`, faster on a CPU at inference."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not keeps_channels_innermost(input) or output_size is not None:
            return super().forward(input, output_size)
        convolved = F.conv_transpose2d(
            as_image(input),
            self.weight.unsqueeze(2),
            self.bias,
            (1, *self.stride),
            (0, int(self.padding[0])),
            (0, *self.output_padding),
            self.groups,
            (1, *self.dilation),
        )
        return convolved.squeeze(2)


Activation = Literal["elu", "snake", "none"]


def kaiser_sinc_filter(cutoff: float, half_width: float, kernel_size: int) -> Tensor:
    """Return a low-pass filter of unit sum, (1, 1, k): a sinc under a Kaiser window; `cutoff` in cycles per sample."""
    half = kernel_size // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * half_width + 7.95  # decibels, Kaiser's estimate
    if attenuation > 50.0:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21.0:
        beta = 0.5842 * (attenuation - 21.0) ** 0.4 + 0.07886 * (attenuation - 21.0)
    else:
        beta = 0.0
    window = torch.kaiser_window(kernel_size, periodic=False, beta=beta)
    time = torch.arange(kernel_size) - half + (0.5 if kernel_size % 2 == 0 else 0.0)
    taps = 2 * cutoff * window * torch.sinc(2 * cutoff * time)
    return (taps / taps.sum()).view(1, 1, kernel_size)


class UpSample1d(nn.Module):
    """Band-limited upsampling by `ratio`; edges are repeated."""

    filter: Tensor

    def __init__(self, ratio: int, kernel_size: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.pad = kernel_size // ratio - 1
        self.trim_left = self.pad * ratio + (kernel_size - ratio) // 2
        self.trim_right = self.pad * ratio + (kernel_size - ratio + 1) // 2
        self.register_buffer("filter", kaiser_sinc_filter(0.5 / ratio, 0.6 / ratio, kernel_size))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n * ratio)
        channels = x.shape[1]
        x = F.pad(x, (self.pad, self.pad), mode="replicate")
        x = F.conv_transpose1d(x, self.ratio * self.filter.expand(channels, -1, -1), stride=self.ratio, groups=channels)
        return x[..., self.trim_left : -self.trim_right]


class LowPassFilter1d(nn.Module):
    """A low-pass at `cutoff` cycles per sample that keeps every `stride`-th sample; edges are repeated."""

    filter: Tensor

    def __init__(self, cutoff: float, half_width: float, stride: int, kernel_size: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (kernel_size // 2 - (1 if kernel_size % 2 == 0 else 0), kernel_size // 2)
        self.register_buffer("filter", kaiser_sinc_filter(cutoff, half_width, kernel_size))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n / stride)
        channels = x.shape[1]
        x = F.pad(x, self.padding, mode="replicate")
        return F.conv1d(x, self.filter.expand(channels, -1, -1), stride=self.stride, groups=channels)


class DownSample1d(nn.Module):
    """Band-limited downsampling by `ratio`."""

    def __init__(self, ratio: int, kernel_size: int) -> None:
        super().__init__()
        self.lowpass = LowPassFilter1d(0.5 / ratio, 0.6 / ratio, ratio, kernel_size)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n / ratio)
        return self.lowpass(x)


class AntiAliased(nn.Module):
    """An activation at twice the rate, so that its harmonics do not alias (Karras et al. 2021)."""

    def __init__(self, activation: nn.Module, ratio: int = 2, kernel_size: int = 12) -> None:
        super().__init__()
        self.act = activation
        self.upsample = UpSample1d(ratio, kernel_size)
        self.downsample = DownSample1d(ratio, kernel_size)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n)
        return self.downsample(self.act(self.upsample(x)))


def make_activation(name: Activation, channels: int, antialias: bool = False) -> nn.Module:
    """Build an activation for `channels` channels; ELU and none have no parameters."""
    activation: nn.Module
    if name == "snake":
        activation = SnakeBeta(channels)
    elif name == "elu":
        activation = nn.ELU()
    elif name == "none":
        activation = nn.Identity()
    else:
        raise ValueError(f"no activation named {name!r}; allowed: elu, snake, none")
    return AntiAliased(activation) if antialias else activation


def run_layer(layer: nn.Module, x: Tensor, recompute: bool, **options: Any) -> Tensor:
    """Call a layer; with `recompute` its activations are computed again in the backward pass instead of kept."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, x, use_reentrant=False, **options)
    return layer(x, **options)
