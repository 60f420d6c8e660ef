"""Oobleck, the convolutional autoencoder of Stable Audio: strided, weight-normalised, zero-padded.

A level of odd stride s loses one sample on decoding: its transposed convolution turns n samples into n * s - 1. Even
strides keep every sample.
"""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.models.autoencoders.layers import Activation, make_activation, run_layer
from stable_audio_tools.models.autoencoders.levels import (
    Multiples,
    Recompute,
    Snake,
    Strides,
    check_lengths,
    describe_coder,
)
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, WNConvTranspose1d

DILATIONS = (1, 3, 9)

_Width = Annotated[int, Field(ge=1, description="width at the rate of the audio")]


class ResidualUnit(nn.Module):
    """x + conv1(act(conv7(act(x)))), the seven taps `dilation` samples apart; the length stays."""

    def __init__(self, channels: int, dilation: int, use_snake: bool = False, checkpointing: bool = False) -> None:
        super().__init__()
        activation: Activation = "snake" if use_snake else "elu"
        self.checkpointing = checkpointing
        self.layers = nn.Sequential(
            make_activation(activation, channels),
            WNConv1d(channels, channels, kernel_size=7, dilation=dilation, padding=3 * dilation),
            make_activation(activation, channels),
            WNConv1d(channels, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n)
        return x + run_layer(self.layers, x, recompute=self.checkpointing and self.training)


def downsampling_conv(in_channels: int, out_channels: int, stride: int) -> WNConv1d:
    """Build a strided convolution with windows of two strides: n samples to n / stride frames."""
    return WNConv1d(in_channels, out_channels, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2))


def upsampling_conv(in_channels: int, out_channels: int, stride: int) -> WNConvTranspose1d:
    """Build the transpose of `downsampling_conv`: n frames to n * stride samples, one fewer if the stride is odd."""
    return WNConvTranspose1d(
        in_channels, out_channels, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2)
    )


class EncoderBlock(nn.Module):
    """Residual units at the level's own rate, then a step down."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, use_snake: bool = False, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(ResidualUnit(in_channels, dilation, use_snake, checkpointing) for dilation in DILATIONS),
            make_activation("snake" if use_snake else "elu", in_channels),
            downsampling_conv(in_channels, out_channels, stride),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c', n / stride)
        return self.layers(x)


class DecoderBlock(nn.Module):
    """A step up, by a transposed convolution or by repetition and a convolution, then residual units."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        use_snake: bool = False,
        antialias_activation: bool = False,
        use_nearest_upsample: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        step_up: nn.Module
        if use_nearest_upsample:
            step_up = nn.Sequential(
                nn.Upsample(scale_factor=stride, mode="nearest"),
                WNConv1d(in_channels, out_channels, kernel_size=2 * stride, padding="same", bias=False),
            )
        else:
            step_up = upsampling_conv(in_channels, out_channels, stride)
        self.layers = nn.Sequential(
            make_activation("snake" if use_snake else "elu", in_channels, antialias_activation),
            step_up,
            *(ResidualUnit(out_channels, dilation, use_snake, checkpointing) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t) -> (b, c', t * stride)
        return self.layers(x)


def check_strides(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Check that there is one stride per level."""
    yield from check_lengths(config, ("strides",))


@register("encoder", "oobleck", facts=lambda config: describe_coder(config, "in_channels"), check=check_strides)
class OobleckEncoder(nn.Module):
    """Convolutional encoder of Stable Audio: audio to latents."""

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="audio channels")] = 2,
        channels: _Width = 128,
        latent_dim: Annotated[int, Field(ge=1, description="output channels; twice the model's for a vae")] = 32,
        c_mults: Multiples = (1, 2, 4, 8),
        strides: Strides = (2, 4, 8, 8),
        use_snake: Snake = False,
        antialias_activation: Annotated[bool, Field(description="run the last activation at twice the rate")] = False,
        checkpointing: Recompute = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = [channels, *(channels * multiple for multiple in c_mults)]
        self.layers = nn.Sequential(
            WNConv1d(in_channels, widths[0], kernel_size=7, padding=3),
            *(
                EncoderBlock(narrow, wide, stride, use_snake, checkpointing)
                for narrow, wide, stride in zip(widths, widths[1:], strides, strict=False)
            ),
            make_activation("snake" if use_snake else "elu", widths[-1], antialias_activation),
            WNConv1d(widths[-1], latent_dim, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, d, t)
        return self.layers(x).contiguous()


@register("decoder", "oobleck", facts=lambda config: describe_coder(config, "out_channels"), check=check_strides)
class OobleckDecoder(nn.Module):
    """Convolutional decoder of Stable Audio: latents to audio."""

    def __init__(
        self,
        out_channels: Annotated[int, Field(ge=1, description="audio channels")] = 2,
        channels: _Width = 128,
        latent_dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 32,
        c_mults: Multiples = (1, 2, 4, 8),
        strides: Strides = (2, 4, 8, 8),
        use_snake: Snake = False,
        antialias_activation: Annotated[
            bool, Field(description="run the activation before each step up, and the last, at twice the rate")
        ] = False,
        use_nearest_upsample: Annotated[
            bool, Field(description="step up by repetition and a convolution instead of a transposed convolution")
        ] = False,
        final_tanh: Annotated[bool, Field(description="end in tanh: audio within [-1, 1]")] = True,
        checkpointing: Recompute = False,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        widths = [channels, *(channels * multiple for multiple in c_mults)]
        levels = list(zip(widths, widths[1:], strides, strict=False))
        self.layers = nn.Sequential(
            WNConv1d(latent_dim, widths[-1], kernel_size=7, padding=3),
            *(
                DecoderBlock(wide, narrow, stride, use_snake, antialias_activation, use_nearest_upsample, checkpointing)
                for narrow, wide, stride in reversed(levels)
            ),
            make_activation("snake" if use_snake else "elu", widths[0], antialias_activation),
            WNConv1d(widths[0], out_channels, kernel_size=7, padding=3, bias=False),
            nn.Tanh() if final_tanh else nn.Identity(),
        )

    def forward(self, latents: Tensor) -> Tensor:  # (b, d, t) -> (b, c, n)
        return self.layers(latents).contiguous()
