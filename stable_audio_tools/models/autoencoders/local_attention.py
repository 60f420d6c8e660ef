"""Transformer encoder and decoder that attend to neighbours only, with halving and doubling of the rate in between.

Each position attends to the `local_attn_window_size` nearest, itself among them; at the ends of the clip the window is
shifted inwards, so that every position sees equally many (neighbourhood attention, Hassani et al. 2023):

    window of 3    [0 1 2] 3 4      for positions 0 and 1
                    0 1 [2 3 4]     for positions 3 and 4
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.autoencoders.levels import Count, check_lengths, describe_coder
from stable_audio_tools.models.transformer import Attention, FeedForward, LayerNorm, Rotary, RotaryEmbedding
from stable_audio_tools.models.transformer.rotary import rotate

SMALLEST_BLOCK = 64  # queries that share a stretch of keys

_Counts = Annotated[Sequence[Count], Field(min_length=1)]
_Heads = Annotated[_Counts, Field(description="attention heads of each level")]
_Depths = Annotated[_Counts, Field(description="layers of each level")]
_Ratios = Annotated[_Counts, Field(description="change of rate at each level")]
_Window = Annotated[int, Field(ge=1, description="positions that each one attends to, at its level's rate")]
_Mult = Annotated[float, Field(gt=0, description="width of the feed-forward relative to the width of the level")]
_Causal = Annotated[bool, Field(description="attend to no later position")]
_CondDim = Annotated[int, Field(ge=0, description="width of a vector that scales the norms, given as cond; 0: none")]
_ContextDim = Annotated[int, Field(ge=0, description="width of tokens to attend to, given as cross_attn_cond; 0: none")]


def window_starts(positions: Tensor, length: int, window: int) -> Tensor:
    """Return the first key of each position's window; a window of even size has one more key before than after."""
    return (positions - window // 2).clamp(0, length - window)


def neighbourhood_attention(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool = False) -> Tensor:
    """Attend from (b, h, n, d) to the `window` nearest positions, in time and memory linear in n.

    Queries are taken in blocks, and each block meets the stretch of keys that covers the windows of all of them.
    """
    batch, length = len(q), q.shape[-2]
    window = min(window, length)
    block = max(window, SMALLEST_BLOCK)
    keys, seen = _blocks(length, window, block, causal, q.device)
    blocks = len(keys)
    q = F.pad(q, (0, 0, 0, blocks * block - length))

    def by_block(x: Tensor) -> Tensor:  # (b, h, blocks, m, d) -> (b * blocks, h, m, d)
        return x.transpose(1, 2).flatten(0, 1)

    mixed = F.scaled_dot_product_attention(
        by_block(q.unflatten(2, (blocks, block))),
        by_block(k[:, :, keys]),
        by_block(v[:, :, keys]),
        attn_mask=seen[:, None].repeat(batch, 1, 1, 1),
    )
    out = mixed.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return out[:, :, :length]


@lru_cache(maxsize=16)
def _blocks(length: int, window: int, block: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the keys of each block (blocks, w), and which of them each query sees (blocks, block, w).

    The result is cached, so it is computed outside inference mode and can serve training too.
    """
    with torch.inference_mode(False):
        stretch = min(block + window - 1, length)
        queries = torch.arange(math.ceil(length / block) * block, device=device).view(-1, block)
        first_keys = (queries[:, :1] - window // 2).clamp(0, length - stretch)
        keys = first_keys + torch.arange(stretch, device=device)
        start = window_starts(queries, length, window)[..., None]
        seen = (keys[:, None] >= start) & (keys[:, None] < start + window)
        if causal:
            # Positions past the end, which only fill the last block, keep a key: a row of none would give NaN.
            seen &= keys[:, None] <= queries[..., None]
        return keys, seen


class LocalAttention(nn.Module):
    """Self-attention over the nearest positions."""

    def __init__(self, dim: int, dim_heads: int, window: int, causal: bool) -> None:
        super().__init__()
        self.dim_heads = dim_heads
        self.window = window
        self.causal = causal
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:  # (b, t, d) -> (b, t, d)
        q, k, v = (part.unflatten(-1, (-1, self.dim_heads)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        mixed = neighbourhood_attention(rotate(q, rotary), rotate(k, rotary), v, self.window, self.causal)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class AdaRMSNorm(nn.Module):
    """Root-mean-square norm, scaled by a projection of a condition."""

    def __init__(self, features: int, cond_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(cond_features, features, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:  # (b, t, d), (b, c) -> (b, t, d)
        scale = self.linear(cond)[:, None] + 1
        return x * (scale * x.float().square().mean(-1, keepdim=True).add(self.eps).rsqrt()).to(x.dtype)


class LocalTransformer(nn.Module):
    """Layers at one rate; `layers` holds for each one norm, attention, cross-attention, norm and feed-forward."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        window: int,
        ff_mult: float,
        causal: bool,
        cond_dim: int,
        cross_attn_cond_dim: int,
    ) -> None:
        super().__init__()
        dim_head = dim // heads
        self.cond_dim = cond_dim
        self.cross_attn_cond_dim = cross_attn_cond_dim
        # At least 32 rotated channels, as in published weights, where a head has as many.
        self.rotary_pos_emb = RotaryEmbedding(min(max(dim_head // 2, 32), dim_head))

        def norm() -> nn.Module:
            return AdaRMSNorm(dim, cond_dim, eps=1e-8) if cond_dim else LayerNorm(dim)

        def cross_attention() -> nn.Module:
            return Attention(dim, dim_head, dim_context=cross_attn_cond_dim) if cross_attn_cond_dim else nn.Identity()

        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    norm(),
                    LocalAttention(dim, dim_head, window, causal),
                    cross_attention(),
                    norm(),
                    FeedForward(dim, mult=ff_mult, no_bias=True),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, cond: Tensor | None = None, cross_attn_cond: Tensor | None = None) -> Tensor:
        """x (b, t, d), cond (b, c), cross_attn_cond (b, s, c) -> (b, t, d)"""
        scaling = self._scaling(cond, cross_attn_cond)
        rotary = self.rotary_pos_emb.table(x.shape[1])
        for attention_norm, attention, cross_attention, ff_norm, ff in self._rows():
            x = x + attention(attention_norm(x, *scaling), rotary)
            if cross_attn_cond is not None:
                x = x + cross_attention(x, context=cross_attn_cond)
            x = x + ff(ff_norm(x, *scaling))
        return x

    def _rows(self) -> Iterator[tuple[nn.Module, ...]]:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            yield tuple(layer)

    def _scaling(self, cond: Tensor | None, cross_attn_cond: Tensor | None) -> tuple[Tensor, ...]:
        """Check the conditions, and return the arguments of the norms besides x."""
        given = {"cond": (cond, self.cond_dim), "cross_attn_cond": (cross_attn_cond, self.cross_attn_cond_dim)}
        for name, (value, width) in given.items():
            if (value is None) != (width == 0):
                wanted = f"takes {name} of width {width}" if width else f"takes no {name} ({name}_dim is 0)"
                raise ValueError(f"this transformer {wanted}; {'none was' if value is None else 'one was'} given")
        return () if cond is None else (cond,)


class DownsampleBlock(nn.Module):
    """Attention, then `ratio` positions to one."""

    def __init__(self, in_dim: int, dim: int, ratio: int, transformer: LocalTransformer) -> None:
        super().__init__()
        self.ratio = ratio
        self.transformer = transformer
        self.project_in = nn.Linear(in_dim, dim, bias=False) if in_dim != dim else nn.Identity()
        self.project_down = nn.Linear(dim * ratio, dim, bias=False)

    def forward(self, x: Tensor, **conditions: Tensor | None) -> Tensor:  # (b, t, d) -> (b, t / ratio, d')
        x = self.transformer(self.project_in(x), **conditions)
        grouped = x.unflatten(1, (-1, self.ratio)).transpose(2, 3).flatten(2)  # channel-major: (c r)
        down: Tensor = self.project_down(grouped)
        return down


class UpsampleBlock(nn.Module):
    """One position to `ratio`, then attention."""

    def __init__(self, in_dim: int, dim: int, ratio: int, transformer: LocalTransformer) -> None:
        super().__init__()
        self.ratio = ratio
        self.transformer = transformer
        self.project_in = nn.Linear(in_dim, dim, bias=False) if in_dim != dim else nn.Identity()
        self.project_up = nn.Linear(dim, dim * ratio, bias=False)

    def forward(self, x: Tensor, **conditions: Tensor | None) -> Tensor:  # (b, t, d) -> (b, t * ratio, d')
        wide = self.project_up(self.project_in(x))
        up: Tensor = self.transformer(wide.unflatten(2, (-1, self.ratio)).transpose(2, 3).flatten(1, 2), **conditions)
        return up


def check_levels(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Check that the lists have one length, and that widths divide into heads."""
    yield from check_lengths(config, ("embed_dims", "heads", "ratios"), "depths")
    for index, (width, heads) in enumerate(zip(config.embed_dims, config.heads)):
        if width % (2 * heads):
            valid = max(round(width / (2 * heads)), 1) * 2 * heads
            yield (
                f"embed_dims[{index}]",
                f"is {width}, which does not divide into heads[{index}] = {heads} heads of even width; try {valid}",
            )


def _transformers(
    embed_dims: Sequence[int], depths: Sequence[int], heads: Sequence[int], **options: Any
) -> Iterator[tuple[int, int, LocalTransformer]]:
    """Yield (width before, width, transformer) of each level."""
    for before, dim, depth, count in zip([embed_dims[0], *embed_dims], embed_dims, depths, heads):
        yield before, dim, LocalTransformer(dim, depth, count, **options)


@register(
    "encoder",
    "local_attn",
    facts=lambda config: describe_coder(config, "in_channels", "in_channels", "out_channels", "ratios"),
    check=check_levels,
)
class TransformerEncoder1D(nn.Module):
    """Transformer encoder with local attention: audio to latents."""

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="audio channels")],
        out_channels: Annotated[int, Field(ge=1, description="output channels; twice the model's for a vae")],
        embed_dims: Annotated[_Counts, Field(description="width of each level, from audio to latents")] = (
            96,
            192,
            384,
            768,
        ),
        heads: _Heads = (12, 12, 12, 12),
        depths: _Depths = (3, 3, 3, 3),
        ratios: _Ratios = (2, 2, 2, 2),
        local_attn_window_size: _Window = 64,
        ff_mult: _Mult = 2,
        causal: _Causal = False,
        cond_dim: _CondDim = 0,
        cross_attn_cond_dim: _ContextDim = 0,
    ) -> None:
        super().__init__()
        self.ratio = math.prod(ratios)
        levels = _transformers(
            embed_dims,
            depths,
            heads,
            window=local_attn_window_size,
            ff_mult=ff_mult,
            causal=causal,
            cond_dim=cond_dim,
            cross_attn_cond_dim=cross_attn_cond_dim,
        )
        self.layers = nn.ModuleList(
            DownsampleBlock(before, dim, ratio, transformer)
            for ratio, (before, dim, transformer) in zip(ratios, levels)
        )
        self.project_in = nn.Linear(in_channels, embed_dims[0], bias=False)
        self.project_out = nn.Linear(embed_dims[-1], out_channels, bias=False)

    def forward(self, x: Tensor, cond: Tensor | None = None, cross_attn_cond: Tensor | None = None) -> Tensor:
        """Encode (b, c, n) to (b, d, t); samples past the last whole frame are dropped."""
        x = self.project_in(x[..., : x.shape[-1] // self.ratio * self.ratio].transpose(1, 2))
        for layer in self.layers:
            x = layer(x, cond=cond, cross_attn_cond=cross_attn_cond)
        return self.project_out(x).transpose(1, 2).contiguous()


@register(
    "decoder",
    "local_attn",
    facts=lambda config: describe_coder(config, "out_channels", "out_channels", "in_channels", "ratios"),
    check=check_levels,
)
class TransformerDecoder1D(nn.Module):
    """Transformer decoder with local attention: latents to audio."""

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="channels of the latents")],
        out_channels: Annotated[int, Field(ge=1, description="audio channels")],
        embed_dims: Annotated[_Counts, Field(description="width of each level, from latents to audio")] = (
            768,
            384,
            192,
            96,
        ),
        heads: _Heads = (12, 12, 12, 12),
        depths: _Depths = (3, 3, 3, 3),
        ratios: _Ratios = (2, 2, 2, 2),
        local_attn_window_size: _Window = 64,
        ff_mult: _Mult = 2,
        causal: _Causal = False,
        cond_dim: _CondDim = 0,
        cross_attn_cond_dim: _ContextDim = 0,
    ) -> None:
        super().__init__()
        levels = _transformers(
            embed_dims,
            depths,
            heads,
            window=local_attn_window_size,
            ff_mult=ff_mult,
            causal=causal,
            cond_dim=cond_dim,
            cross_attn_cond_dim=cross_attn_cond_dim,
        )
        self.layers = nn.ModuleList(
            UpsampleBlock(before, dim, ratio, transformer) for ratio, (before, dim, transformer) in zip(ratios, levels)
        )
        self.project_in = nn.Linear(in_channels, embed_dims[0], bias=False)
        self.project_out = nn.Linear(embed_dims[-1], out_channels, bias=False)

    def forward(self, latents: Tensor, cond: Tensor | None = None, cross_attn_cond: Tensor | None = None) -> Tensor:
        """(b, d, t) -> (b, c, n)"""
        x = self.project_in(latents.transpose(1, 2))
        for layer in self.layers:
            x = layer(x, cond=cond, cross_attn_cond=cross_attn_cond)
        return self.project_out(x).transpose(1, 2).contiguous()
