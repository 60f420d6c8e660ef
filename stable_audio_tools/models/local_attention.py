"""Published import path of transformers with local attention."""

from typing import Any

from torch import Tensor, nn

from stable_audio_tools.models.autoencoders.local_attention import (
    DownsampleBlock,
    LocalTransformer,
    TransformerDecoder1D,
    TransformerEncoder1D,
    UpsampleBlock,
)
from stable_audio_tools.models.transformer.published import checkpoint

__all__ = [
    "ContinuousLocalTransformer",
    "TransformerDecoder1D",
    "TransformerDownsampleBlock1D",
    "TransformerEncoder1D",
    "TransformerUpsampleBlock1D",
    "checkpoint",
]


class ContinuousLocalTransformer(LocalTransformer):
    """A stack over (b, t, dim_in) whose attention reaches `local_attn_window_size` positions."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        dim_in: int | None = None,
        dim_out: int | None = None,
        causal: bool = False,
        local_attn_window_size: int = 64,
        heads: int = 8,
        ff_mult: float = 2,
        cond_dim: int = 0,
        cross_attn_cond_dim: int = 0,
    ) -> None:
        super().__init__(dim, depth, heads, local_attn_window_size, ff_mult, causal, cond_dim, cross_attn_cond_dim)
        self.project_in = nn.Identity() if dim_in is None else nn.Linear(dim_in, dim)
        self.project_out = nn.Identity() if dim_out is None else nn.Linear(dim, dim_out)

    def forward(self, x: Tensor, cond: Tensor | None = None, cross_attn_cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.project_out(super().forward(self.project_in(x), cond, cross_attn_cond))
        return out


def _stack(dim: int, depth: int, heads: int, window: int, options: dict[str, Any]) -> LocalTransformer:
    return ContinuousLocalTransformer(dim=dim, depth=depth, heads=heads, local_attn_window_size=window, **options)


class TransformerDownsampleBlock1D(DownsampleBlock):
    """A stack, then neighbouring positions folded into one: (b, t, c) -> (b, t / ratio, embed_dim)."""

    def __init__(
        self,
        in_channels: int,
        embed_dim: int = 768,
        depth: int = 3,
        heads: int = 12,
        downsample_ratio: int = 2,
        local_attn_window_size: int = 64,
        **options: Any,
    ) -> None:
        transformer = _stack(embed_dim, depth, heads, local_attn_window_size, options)
        super().__init__(in_channels, embed_dim, downsample_ratio, transformer)


class TransformerUpsampleBlock1D(UpsampleBlock):
    """Each position unfolded into `upsample_ratio` ones, then a stack: (b, t, c) -> (b, t * ratio, embed_dim)."""

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        depth: int = 3,
        heads: int = 12,
        upsample_ratio: int = 2,
        local_attn_window_size: int = 64,
        **options: Any,
    ) -> None:
        transformer = _stack(embed_dim, depth, heads, local_attn_window_size, options)
        super().__init__(in_channels, embed_dim, upsample_ratio, transformer)
