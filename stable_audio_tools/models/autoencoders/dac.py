"""Encoder and decoder of the Descript Audio Codec (Kumar et al. 2023), with descript-audio-codec's state-dict names.

As in Oobleck, a decoder level of odd stride outputs one sample too few.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.activations import Snake1d
from stable_audio_tools.models.autoencoders.levels import describe_coder
from stable_audio_tools.models.autoencoders.oobleck import DILATIONS, downsampling_conv, upsampling_conv
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d

_Strides = Sequence[Annotated[int, Field(ge=1)]]


class DACResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x))))."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake1d(channels),
            WNConv1d(channels, channels, kernel_size=7, dilation=dilation, padding=3 * dilation),
            Snake1d(channels),
            WNConv1d(channels, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n)
        return x + self.block(x)


class Level(nn.Module):
    """One level: residual units on its finer side, a strided or transposed convolution to the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def residual_units(channels: int) -> list[nn.Module]:
    """Return one residual unit for each dilation of the codec."""
    return [DACResidualUnit(channels, dilation) for dilation in DILATIONS]


class DACEncoder(nn.Module):
    """Channels double at each step down."""

    def __init__(self, in_channels: int, d_model: int, strides: Sequence[int]) -> None:
        super().__init__()
        widths = [d_model * 2**level for level in range(len(strides) + 1)]
        self.enc_dim = widths[-1]
        self.block = nn.Sequential(
            WNConv1d(in_channels, d_model, kernel_size=7, padding=3),
            *(
                Level(*residual_units(width), Snake1d(width), downsampling_conv(width, 2 * width, stride))
                for width, stride in zip(widths, strides)
            ),
            Snake1d(self.enc_dim),
            WNConv1d(self.enc_dim, self.enc_dim, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, enc_dim, t)
        return self.block(x)


class DACDecoder(nn.Module):
    """Channels halve at each step up; ends in tanh."""

    def __init__(self, latent_dim: int, out_channels: int, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        widths = [channels // 2**level for level in range(len(rates) + 1)]
        self.model = nn.Sequential(
            WNConv1d(latent_dim, channels, kernel_size=7, padding=3),
            *(
                Level(Snake1d(wide), upsampling_conv(wide, narrow, rate), *residual_units(narrow))
                for wide, narrow, rate in zip(widths, widths[1:], rates)
            ),
            Snake1d(widths[-1]),
            WNConv1d(widths[-1], out_channels, kernel_size=7, padding=3),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, d, t) -> (b, c, n)
        return self.model(x).contiguous()


def encoder_facts(config: SimpleNamespace) -> JsonObject:
    """Return channels, latent width and downsampling ratio of a DAC encoder."""
    widest = config.d_model * 2 ** len(config.strides)
    return {
        "in_channels": config.in_channels,
        "latent_dim": widest if config.latent_dim is None else config.latent_dim,
        "ratio": math.prod(config.strides),
        "ratio_key": "strides",
    }


@register("encoder", "dac", facts=encoder_facts)
class DACEncoderWrapper(nn.Module):
    """Descript Audio Codec's encoder, with a projection to the latents."""

    def __init__(
        self,
        d_model: Annotated[int, Field(ge=1, description="channels at the rate of the audio; each level doubles them")],
        strides: Annotated[_Strides, Field(min_length=1, description="stride of each level, from audio to latents")],
        in_channels: Annotated[int, Field(ge=1, description="audio channels")] = 1,
        latent_dim: Annotated[
            int | None,
            Field(ge=1, description="output channels, twice the model's for a vae; null: the channels of the network"),
        ] = None,
    ) -> None:
        super().__init__()
        self.encoder = DACEncoder(in_channels, d_model, strides)
        self.latent_dim = latent_dim
        self.proj_out: nn.Module = nn.Identity()
        if latent_dim is not None:
            self.proj_out = nn.Conv1d(self.encoder.enc_dim, latent_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, d, t)
        return self.proj_out(self.encoder(x)).contiguous()


@register("decoder", "dac", facts=lambda config: describe_coder(config, "out_channels", ratio_key="rates"))
class DACDecoderWrapper(nn.Module):
    """Descript Audio Codec's decoder."""

    def __init__(
        self,
        latent_dim: Annotated[int, Field(ge=1, description="channels of the latents")],
        channels: Annotated[int, Field(ge=1, description="channels at the latents; each level halves them")],
        rates: Annotated[_Strides, Field(min_length=1, description="factor of each level, from latents to audio")],
        out_channels: Annotated[int, Field(ge=1, description="audio channels")] = 1,
    ) -> None:
        super().__init__()
        self.decoder = DACDecoder(latent_dim, out_channels, channels, rates)
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> Tensor:  # (b, d, t) -> (b, c, n)
        return self.decoder(x)
