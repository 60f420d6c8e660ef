"""Heads that score the hidden states of a diffusion transformer, (b, d, t) -> (b, 1, frames), for ARC post-training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d

_GROUPS = 32


@register("discriminator_head", "conv", ignored=("loss_type",))
class ConvDiscriminator(nn.Module):
    """Four strided convolutions, then one score per frame."""

    def __init__(
        self,
        soft_clip_scale: Annotated[float | None, Field(gt=0, description="scores are kept within +- this")] = None,
        *,
        channels: Runtime[int],
    ) -> None:
        super().__init__()
        self.soft_clip_scale = soft_clip_scale
        layers: list[nn.Module] = []
        for _ in range(4):
            down = nn.Conv1d(channels, channels, kernel_size=4, stride=2, padding=1)
            layers += [down, nn.GroupNorm(math.gcd(_GROUPS, channels), channels), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv1d(channels, 1, kernel_size=4))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        if self.soft_clip_scale is None:
            return scores
        return self.soft_clip_scale * torch.tanh(scores / self.soft_clip_scale)


@dataclass(frozen=True)
class ConvNeXtOptions:
    """Options of every ConvNeXt block."""

    kernel_size: Annotated[int, Field(ge=1)] = 7
    mult: Annotated[int, Field(ge=1, description="widening inside the block")] = 4
    glu: Annotated[bool, Field(description="gate the inner channels")] = False


class ConvNeXtBlock(nn.Module):
    """Residual: a convolution per channel, then a pointwise network that starts at zero."""

    def __init__(self, dim: int, kernel_size: int = 7, mult: int = 4, glu: bool = False) -> None:
        super().__init__()
        inner = dim * mult
        self.glu = glu
        self.dw_conv = WNConv1d(dim, dim, kernel_size=kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj_up = WNConv1d(dim, inner * 2 if self.glu else inner, kernel_size=1)
        self.act = nn.SiLU() if self.glu else nn.GELU()
        self.proj_down = WNConv1d(inner, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.proj_up(self.dw_conv(x))
        if self.glu:
            hidden, gate = hidden.chunk(2, dim=1)
            hidden = hidden * gate.sigmoid()
        out: Tensor = x + self.proj_down(self.act(hidden))
        return out


class ConvNeXtStage(nn.Module):
    """Blocks at one rate, then a strided convolution to the next."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, blocks: int, options: ConvNeXtOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ConvNeXtBlock(in_channels, **vars(options)) for _ in range(blocks)])
        self.downsample = WNConv1d(
            in_channels, out_channels, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.downsample(x)
        return out


class ConvNeXtBackbone(nn.Module):
    """(b, c, n) -> (b, latent_dim, about n / product of strides)"""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        latent_dim: int,
        c_mults: Sequence[int],
        strides: Sequence[int],
        num_blocks: Sequence[int],
        conv_args: ConvNeXtOptions,
    ) -> None:
        super().__init__()
        widths = [channels * mult for mult in (1, *c_mults)]
        self.proj_in = WNConv1d(in_channels, widths[0], kernel_size=7, padding=3)
        stages = [
            ConvNeXtStage(width, wider, stride, blocks, conv_args)
            for width, wider, stride, blocks in zip(widths, widths[1:], strides, num_blocks)
        ]
        self.layers = nn.Sequential(*stages, WNConv1d(widths[-1], latent_dim, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.proj_in(x))
        return out


@register("discriminator_head", "convnext", ignored=("loss_type",))
class ConvNeXtDiscriminator(nn.Module):
    """A ConvNeXt encoder whose one output channel is the score."""

    def __init__(
        self,
        channels: Annotated[int, Field(ge=1, description="channels of the first stage")] = 128,
        c_mults: Annotated[Sequence[int], Field(min_length=1, description="width of each stage")] = (1, 2, 4, 8),
        strides: Annotated[Sequence[int], Field(min_length=1, description="stride of each stage")] = (2, 4, 8, 8),
        num_blocks: Annotated[Sequence[int] | None, Field(description="blocks of each stage; 3 of each")] = None,
        conv_args: Annotated[ConvNeXtOptions, Field(description="options of every block")] = ConvNeXtOptions(),
        latent_dim: Literal[1] = 1,
        *,
        in_channels: Runtime[int],
    ) -> None:
        super().__init__()
        blocks = num_blocks or (3,) * len(c_mults)
        self.encoder = ConvNeXtBackbone(in_channels, channels, latent_dim, c_mults, strides, blocks, conv_args)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x)
        return out
