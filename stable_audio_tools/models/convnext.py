"""Published ConvNeXt coders for audio, without a JSON tag, for other people's code."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.models.autoencoders.layers import run_layer
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, WNConvTranspose1d
from stable_audio_tools.models.discriminators.arc_heads import ConvNeXtBackbone, ConvNeXtBlock, ConvNeXtOptions
from stable_audio_tools.models.transformer.published import checkpoint

__all__ = ["ConvNeXtBlock", "ConvNeXtDecoder", "ConvNeXtEncoder", "WNConv1d", "WNConvTranspose1d", "checkpoint"]


class ConvNeXtEncoder(ConvNeXtBackbone):
    """(b, c, n) -> (b, latent_dim, about n / product of strides)"""

    def __init__(
        self,
        in_channels: int = 2,
        channels: int = 128,
        latent_dim: int = 32,
        c_mults: Sequence[int] = (1, 2, 4, 8),
        strides: Sequence[int] = (2, 4, 8, 8),
        num_blocks: Sequence[int] | None = None,
        conv_args: Mapping[str, Any] | None = None,
    ) -> None:
        blocks = num_blocks or [3] * len(c_mults)
        options = ConvNeXtOptions(**(conv_args or {}))
        super().__init__(in_channels, channels, latent_dim, c_mults, strides, blocks, options)


class _DecoderStage(nn.Module):
    """A transposed convolution to the next rate, then three blocks."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, options: ConvNeXtOptions) -> None:
        super().__init__()
        self.upsample = WNConvTranspose1d(
            in_channels, out_channels, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2)
        )
        self.layers = nn.ModuleList([ConvNeXtBlock(out_channels, **vars(options)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.upsample(x)
        for layer in self.layers:
            x = run_layer(layer, x, recompute=self.training)
        return x


class ConvNeXtDecoder(nn.Module):
    """(b, latent_dim, t) -> (b, out_channels, about t * product of strides)"""

    def __init__(
        self,
        out_channels: int = 2,
        channels: int = 128,
        latent_dim: int = 32,
        c_mults: Sequence[int] = (1, 2, 4, 8),
        strides: Sequence[int] = (2, 4, 8, 8),
        conv_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = ConvNeXtOptions(**(conv_args or {}))
        widths = [channels * mult for mult in (1, *c_mults)]
        stages = [
            _DecoderStage(wide, narrow, stride, options)
            for wide, narrow, stride in reversed(list(zip(widths[1:], widths, strides)))
        ]
        self.layers = nn.Sequential(
            WNConv1d(latent_dim, widths[-1], kernel_size=7, padding=3),
            *stages,
            WNConv1d(widths[0], out_channels, kernel_size=7, padding=3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out
