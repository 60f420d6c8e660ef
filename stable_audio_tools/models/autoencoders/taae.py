"""TAAE, the autoencoder of Stable Codec (Parker et al. 2024): transformer layers between strided convolutions.

At each level attention reaches `sliding_window` frames back and ahead, whichever kernel computes it, so that the cost
grows linearly with the length. A level of odd stride loses one sample on decoding, as in Oobleck.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.models.autoencoders.layers import Activation, make_activation, run_layer
from stable_audio_tools.models.autoencoders.levels import (
    Conformer,
    Depths,
    LayerScale,
    Multiples,
    Recompute,
    Strides,
    Width,
    check_lengths,
    check_widths,
    describe_coder,
)
from stable_audio_tools.models.autoencoders.oobleck import DILATIONS, ResidualUnit, downsampling_conv, upsampling_conv
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d
from stable_audio_tools.models.transformer import TransformerBlock
from stable_audio_tools.models.transformer.feedforward import Transpose

HEAD_WIDTH = 128

_Snake = Annotated[bool, Field(description="SnakeBeta activations around the convolutions instead of none")]
_Window = Annotated[
    Annotated[Sequence[Annotated[int, Field(ge=-1)]], Field(min_length=2, max_length=2)] | None,
    Field(description="frames that attention reaches back and ahead; -1, or null for both: no limit"),
]
_DilatedConv = Annotated[bool, Field(description="residual units of dilated convolutions at each level, as in Oobleck")]


def transformer_layers(width: int, depth: int, conformer: bool, layer_scale: bool) -> nn.ModuleList:
    """Build layers of attention over time between two transpositions, (b, c, t) to (b, t, c) and back."""
    layers = [
        TransformerBlock(
            width,
            dim_heads=HEAD_WIDTH,
            zero_init_branch_outputs=not layer_scale,
            conformer=conformer,
            layer_scale=layer_scale,
            add_rope=True,
            attn_kwargs={"qk_norm": "ln"},
            ff_kwargs={"mult": 4, "no_bias": False},
            norm_kwargs={"eps": 1e-2},
        )
        for _ in range(depth)
    ]
    return nn.ModuleList([Transpose(), *layers, Transpose()])


class TAAEBlock(nn.Module):
    """One level: `layers` in order, among them a `ModuleList` of transformer layers."""

    def __init__(self, layers: Sequence[nn.Module], sliding_window: Sequence[int] | None, checkpointing: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.sliding_window = (sliding_window[0], sliding_window[1]) if sliding_window else None
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t) -> (b, c', t')
        recompute = self.checkpointing and self.training
        for layer in self.layers:
            for step in layer if isinstance(layer, nn.ModuleList) else [layer]:
                window = (
                    {"self_attention_flash_sliding_window": self.sliding_window}
                    if isinstance(step, TransformerBlock)
                    else {}
                )
                x = run_layer(step, x, recompute, **window)
        return x


def _units(width: int, use_snake: bool, wanted: bool) -> list[nn.Module]:
    return [ResidualUnit(width, dilation, use_snake) for dilation in DILATIONS] if wanted else []


def _activation(use_snake: bool) -> Activation:
    return "snake" if use_snake else "none"


def check_levels(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Check the lengths of the lists, and that widths divide into attention heads."""
    yield from check_lengths(config, ("strides", "transformer_depths"))
    yield from check_widths(config, HEAD_WIDTH)


@register("encoder", "taae", facts=lambda config: describe_coder(config, "in_channels"), check=check_levels)
class TAAEEncoder(nn.Module):
    """Transformer encoder of Stable Codec: audio to latents."""

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="audio channels")] = 2,
        channels: Width = 128,
        latent_dim: Annotated[int, Field(ge=1, description="output channels; twice the model's for a vae")] = 32,
        c_mults: Multiples = (1, 2, 4, 8),
        strides: Strides = (2, 4, 8, 8),
        transformer_depths: Depths = (3, 3, 3, 3),
        use_snake: _Snake = False,
        sliding_window: _Window = (63, 64),
        checkpointing: Recompute = False,
        conformer: Conformer = False,
        layer_scale: LayerScale = True,
        use_dilated_conv: _DilatedConv = False,
    ) -> None:
        super().__init__()
        widths = [channels * multiple for multiple in (c_mults[0], *c_mults)]
        blocks = [
            TAAEBlock(
                [
                    *_units(narrow, use_snake, use_dilated_conv),
                    make_activation(_activation(use_snake), narrow),
                    downsampling_conv(narrow, wide, stride) if stride > 1 else nn.Identity(),
                    transformer_layers(wide, depth, conformer, layer_scale),
                ],
                sliding_window,
                checkpointing,
            )
            for narrow, wide, stride, depth in zip(widths, widths[1:], strides, transformer_depths)
        ]
        self.layers = nn.Sequential(
            WNConv1d(in_channels, widths[0], kernel_size=7, padding=3),
            *blocks,
            make_activation(_activation(use_snake), widths[-1]),
            WNConv1d(widths[-1], latent_dim, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, d, t)
        return self.layers(x).contiguous()


@register("decoder", "taae", facts=lambda config: describe_coder(config, "out_channels"), check=check_levels)
class TAAEDecoder(nn.Module):
    """Transformer decoder of Stable Codec: latents to audio."""

    def __init__(
        self,
        out_channels: Annotated[int, Field(ge=1, description="audio channels")] = 2,
        channels: Width = 128,
        latent_dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 32,
        c_mults: Multiples = (1, 2, 4, 8),
        strides: Strides = (2, 4, 8, 8),
        transformer_depths: Depths = (3, 3, 3, 3),
        use_snake: _Snake = False,
        sliding_window: _Window = (63, 64),
        checkpointing: Recompute = False,
        conformer: Conformer = False,
        layer_scale: LayerScale = True,
        use_dilated_conv: _DilatedConv = False,
    ) -> None:
        super().__init__()
        widths = [channels * multiple for multiple in (c_mults[0], *c_mults)]
        blocks = [
            TAAEBlock(
                [
                    transformer_layers(wide, depth, conformer, layer_scale),
                    make_activation(_activation(use_snake), wide),
                    upsampling_conv(wide, narrow, stride) if stride > 1 else nn.Identity(),
                    *_units(narrow, use_snake, use_dilated_conv),
                ],
                sliding_window,
                checkpointing,
            )
            for narrow, wide, stride, depth in zip(widths, widths[1:], strides, transformer_depths)
        ]
        self.layers = nn.Sequential(
            WNConv1d(latent_dim, widths[-1], kernel_size=3, padding=1),
            *reversed(blocks),
            make_activation(_activation(use_snake), widths[0]),
            WNConv1d(widths[0], out_channels, kernel_size=7, padding=3, bias=False),
        )

    def forward(self, latents: Tensor) -> Tensor:  # (b, d, t) -> (b, c, n)
        return self.layers(latents).contiguous()
