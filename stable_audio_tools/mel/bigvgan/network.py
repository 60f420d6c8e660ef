"""The generator: transposed convolutions, and after each the mean of residual blocks with periodic activations.

Names of modules are those of published state dicts. Weight norm is folded when weights load, so convolutions are plain.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.mel.bigvgan.config import BigVGANConfig
from stable_audio_tools.models.activations import snake
from stable_audio_tools.models.autoencoders.layers import Conv1d, ConvTranspose1d

_TAPS = 12
_CUTOFF = 0.25  # of the doubled rate: the old band's edge
_HALF_WIDTH = 0.3


def lowpass() -> Tensor:
    """Kaiser-windowed sinc of 12 taps, sum 1, for a change of rate by two; (1, 1, taps)"""
    attenuation = 2.285 * (_TAPS // 2 - 1) * math.pi * 4 * _HALF_WIDTH + 7.95  # dB, by Kaiser's formula
    time = torch.arange(_TAPS) - (_TAPS - 1) / 2
    window = torch.kaiser_window(_TAPS, beta=0.1102 * (attenuation - 8.7), periodic=False)
    taps = window * torch.sinc(2 * _CUTOFF * time)
    return (taps / taps.sum())[None, None]


class Filter(nn.Module):
    """The taps, kept in state dicts though nothing changes them."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", lowpass())


class Upsample(Filter):
    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, 2n)
        padded = F.pad(x, (5, 5), "replicate")
        taps = 2 * self.filter.expand(x.shape[1], -1, -1)
        return F.conv_transpose1d(padded, taps, stride=2, padding=15, groups=x.shape[1])


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Filter()

    def forward(self, x: Tensor) -> Tensor:  # (b, c, 2n) -> (b, c, n)
        padded = F.pad(x, (5, 6), "replicate")
        return F.conv1d(padded, self.lowpass.filter.expand(x.shape[1], -1, -1), stride=2, groups=x.shape[1])


class Snake(nn.Module):
    """x + sin^2(alpha x) / beta; the plain kind has beta = alpha."""

    def __init__(self, channels: int, config: BigVGANConfig) -> None:
        super().__init__()
        self.is_log = config.snake_logscale
        start = 0.0 if self.is_log else 1.0
        self.alpha = nn.Parameter(torch.full((channels,), start))
        if config.activation == "snakebeta":
            self.beta = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha[:, None], getattr(self, "beta", self.alpha)[:, None]
        return snake(x, alpha.exp(), beta.exp()) if self.is_log else snake(x, alpha, beta)


class Activation(nn.Module):
    """A periodic activation at twice the rate, so that its harmonics do not fold back."""

    def __init__(self, channels: int, config: BigVGANConfig) -> None:
        super().__init__()
        self.act = Snake(channels, config)
        self.upsample = Upsample()
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.downsample(self.act(self.upsample(x)))
        return made


def _same(channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    return Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


class PairBlock(nn.Module):
    """Block "1": for each dilation, an activation and a dilated convolution, then an activation and a dense one."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], config: BigVGANConfig) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same(channels, kernel) for _ in dilations)
        self.activations = nn.ModuleList(Activation(channels, config) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        activations = iter(self.activations)
        for dilated, dense in zip(self.convs1, self.convs2):
            inner = dilated(next(activations)(x))
            x = x + dense(next(activations)(inner))
        return x


class SingleBlock(nn.Module):
    """Block "2": for each dilation, an activation and a dilated convolution."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], config: BigVGANConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)
        self.activations = nn.ModuleList(Activation(channels, config) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv, activation in zip(self.convs, self.activations):
            x = x + conv(activation(x))
        return x


class BigVGAN(nn.Module):
    """Log mel bands (b, mels, t) to audio (b, 1, t * hop)."""

    def __init__(self, config: BigVGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.upsample_initial_channel
        block = PairBlock if config.resblock == "1" else SingleBlock
        shapes = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes))
        self.conv_pre = Conv1d(config.num_mels, width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            up = ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            width //= 2
            self.ups.append(nn.ModuleList([up]))
            self.resblocks.extend(block(width, size, dilations, config) for size, dilations in shapes)
        self.activation_post = Activation(width, config)
        self.conv_post = Conv1d(width, 1, 7, padding=3, bias=config.use_bias_at_final)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        parallel = len(self.resblocks) // len(self.ups)
        for number, up in enumerate(self.ups):
            assert isinstance(up, nn.ModuleList)
            x = up[0](x)
            first, *others = self.resblocks[number * parallel : (number + 1) * parallel]
            total: Tensor = first(x)
            for block in others:
                total = total + block(x)
            x = total / parallel
        x = self.conv_post(self.activation_post(x))
        return x.tanh() if self.config.use_tanh_at_final else x.clamp(-1, 1)
