"""The levels of the U-Net: one resolution each, with residual blocks and an optional transformer."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.models.diffusion.unet1d.attention import Transformer1d, TransformerOptions
from stable_audio_tools.models.diffusion.unet1d.blocks import BlockOptions, ResnetBlock
from stable_audio_tools.models.diffusion.unet1d.convolutions import downsampling, upsampling


class Signals(NamedTuple):
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
        block: BlockOptions,
        transformer: TransformerOptions,
        *,
        num_blocks: int,
        num_layers: int,
        factor: int,
        kernel_multiplier: int,
        context_channels: int,
    ) -> None:
        super().__init__()
        self.downsample = downsampling(in_channels, out_channels, factor, kernel_multiplier)
        self.blocks = nn.ModuleList(
            ResnetBlock(out_channels + (context_channels if index == 0 else 0), out_channels, block)
            for index in range(num_blocks)
        )
        self.transformer = Transformer1d(num_layers, out_channels, transformer) if num_layers else None

    def forward(self, x: Tensor, signals: Signals, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.downsample(x)
        if context is not None:
            x = torch.cat([x, context], dim=1)
        skips = []
        for block in self.blocks:
            x = block(x, signals.mapping)
            skips.append(x)
        if self.transformer is not None:
            x = self.transformer(x, signals.embedding, signals.embedding_mask)
            skips.append(x)
        return x, skips


class UpLevel(nn.Module):
    """Residual blocks, each fed one skip of the level across, then a transformer, then upsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block: BlockOptions,
        transformer: TransformerOptions,
        *,
        num_blocks: int,
        num_layers: int,
        factor: int,
        use_nearest: bool,
        skip_scale: float,
    ) -> None:
        super().__init__()
        self.skip_scale = skip_scale
        self.blocks = nn.ModuleList(ResnetBlock(2 * in_channels, in_channels, block) for _ in range(num_blocks))
        self.transformer = Transformer1d(num_layers, in_channels, transformer) if num_layers else None
        self.upsample = upsampling(in_channels, out_channels, factor, use_nearest)

    def forward(self, x: Tensor, signals: Signals, skips: list[Tensor]) -> Tensor:
        for block, skip in zip(self.blocks, reversed(skips)):
            x = block(torch.cat([x, skip * self.skip_scale], dim=1), signals.mapping)
        if self.transformer is not None:
            x = self.transformer(x, signals.embedding, signals.embedding_mask)
        out: Tensor = self.upsample(x)
        return out


class MiddleLevel(nn.Module):
    """Two residual blocks around a transformer, at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        *,
        block: BlockOptions,
        num_layers: int,
        transformer: TransformerOptions,
    ) -> None:
        super().__init__()
        self.pre_block, self.post_block = (ResnetBlock(channels, channels, block) for _ in range(2))
        self.transformer = Transformer1d(num_layers, channels, transformer) if num_layers else None

    def forward(self, x: Tensor, signals: Signals) -> Tensor:
        x = self.pre_block(x, signals.mapping)
        if self.transformer is not None:
            x = self.transformer(x, signals.embedding, signals.embedding_mask)
        out: Tensor = self.post_block(x, signals.mapping)
        return out
