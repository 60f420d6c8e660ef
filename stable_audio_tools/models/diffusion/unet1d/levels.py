"""The levels of the U-Net: one resolution each, with residual blocks and an optional transformer."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.models.diffusion.unet1d.attention import Transformer1d, TransformerOptions
from stable_audio_tools.models.diffusion.unet1d.blocks import ResnetBlock
from stable_audio_tools.models.diffusion.unet1d.convolutions import downsampling, upsampling


class Guidance(NamedTuple):
    """What every level is told: the mapping of time and features, and the tokens to attend to."""

    mapping: Tensor | None  # (b, m)
    embedding: Tensor | None  # (b, s, f)
    embedding_mask: Tensor | None  # (b, s)


class DownLevel(nn.Module):
    """Downsample, concatenate context channels, residual blocks, transformer. Returns x and the skips it leaves."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        factor: int,
        kernel_multiplier: int,
        context_channels: int,
        num_blocks: int,
        num_groups: int,
        mapping_features: int | None,
        use_snake: bool,
        num_layers: int,
        transformer: TransformerOptions,
    ) -> None:
        super().__init__()
        self.downsample = downsampling(in_channels, out_channels, factor, kernel_multiplier)
        self.blocks = nn.ModuleList(
            ResnetBlock(
                out_channels + (context_channels if index == 0 else 0),
                out_channels,
                num_groups=num_groups,
                mapping_features=mapping_features,
                use_snake=use_snake,
            )
            for index in range(num_blocks)
        )
        self.transformer = Transformer1d(num_layers, out_channels, transformer) if num_layers else None

    def forward(self, x: Tensor, guidance: Guidance, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.downsample(x)
        if context is not None:
            x = torch.cat([x, context], dim=1)
        skips = []
        for block in self.blocks:
            x = block(x, guidance.mapping)
            skips.append(x)
        if self.transformer is not None:
            x = self.transformer(x, guidance.embedding, guidance.embedding_mask)
            skips.append(x)
        return x, skips


class UpLevel(nn.Module):
    """Residual blocks, each fed one skip of the level across, then a transformer, then upsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        factor: int,
        use_nearest: bool,
        skip_scale: float,
        num_blocks: int,
        num_groups: int,
        mapping_features: int | None,
        use_snake: bool,
        num_layers: int,
        transformer: TransformerOptions,
    ) -> None:
        super().__init__()
        self.skip_scale = skip_scale
        self.blocks = nn.ModuleList(
            ResnetBlock(
                2 * in_channels,
                in_channels,
                num_groups=num_groups,
                mapping_features=mapping_features,
                use_snake=use_snake,
            )
            for _ in range(num_blocks)
        )
        self.transformer = Transformer1d(num_layers, in_channels, transformer) if num_layers else None
        self.upsample = upsampling(in_channels, out_channels, factor, use_nearest)

    def forward(self, x: Tensor, guidance: Guidance, skips: list[Tensor]) -> Tensor:
        for block, skip in zip(self.blocks, reversed(skips)):
            x = block(torch.cat([x, skip * self.skip_scale], dim=1), guidance.mapping)
        if self.transformer is not None:
            x = self.transformer(x, guidance.embedding, guidance.embedding_mask)
        out: Tensor = self.upsample(x)
        return out


class MiddleLevel(nn.Module):
    """Two residual blocks around a transformer, at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        *,
        num_groups: int,
        mapping_features: int | None,
        use_snake: bool,
        num_layers: int,
        transformer: TransformerOptions,
    ) -> None:
        super().__init__()
        self.pre_block, self.post_block = (
            ResnetBlock(
                channels, channels, num_groups=num_groups, mapping_features=mapping_features, use_snake=use_snake
            )
            for _ in range(2)
        )
        self.transformer = Transformer1d(num_layers, channels, transformer) if num_layers else None

    def forward(self, x: Tensor, guidance: Guidance) -> Tensor:
        x = self.pre_block(x, guidance.mapping)
        if self.transformer is not None:
            x = self.transformer(x, guidance.embedding, guidance.embedding_mask)
        out: Tensor = self.post_block(x, guidance.mapping)
        return out
