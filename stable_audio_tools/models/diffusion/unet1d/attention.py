"""Pre-norm transformer layers between the residual blocks: self-attention, cross-attention, feed-forward."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.diffusion.unet1d.blocks import SameConv1d


@dataclass(frozen=True)
class TransformerOptions:
    """The options shared by all transformers of one U-Net; `heads` or `head_features` may follow from the channels."""

    heads: int | None
    head_features: int | None
    multiplier: int
    context_features: int | None
    exclude_masked_tokens: bool = False

    def head_shape(self, channels: int) -> tuple[int, int]:
        """Return (number of heads, features per head) at a level with this many channels."""
        heads, features = self.heads, self.head_features
        assert heads or features, "checked where the config is read"
        return heads or channels // (features or 1), features or channels // (heads or 1)


class HeadedAttention(nn.Module):
    """Scaled dot-product attention over heads and the projection of their outputs."""

    def __init__(self, num_heads: int, head_features: int, out_features: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_out = nn.Linear(num_heads * head_features, out_features)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.num_heads) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.to_out(rearrange(mixed, "b h t d -> b t (h d)"))
        return out


class SequenceAttention(nn.Module):
    """Queries from x, keys and values from the context (x itself where there is none).

    A masked token has zero keys and values: it adds nothing to the output, but its score of zero still takes a share
    of the softmax. Published weights were trained so; `exclude_masked_tokens` takes that share away.
    """

    def __init__(
        self,
        features: int,
        context_features: int,
        num_heads: int,
        head_features: int,
        exclude_masked_tokens: bool = False,
    ) -> None:
        super().__init__()
        inner = num_heads * head_features
        self.exclude_masked_tokens = exclude_masked_tokens
        self.norm = nn.LayerNorm(features)
        self.norm_context = nn.LayerNorm(context_features)
        self.to_q = nn.Linear(features, inner, bias=False)
        self.to_kv = nn.Linear(context_features, 2 * inner, bias=False)
        self.attention = HeadedAttention(num_heads, head_features, features)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (b, t, f), context (b, s, g), keep (b, s): zero or false where a token is padding -> (b, t, f)"""
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(self.norm_context(context)).chunk(2, dim=-1)
        bias = None
        if keep is not None:
            k, v = k * keep[..., None].to(k), v * keep[..., None].to(v)
            if self.exclude_masked_tokens:
                # The lowest finite number, not -inf: a row with every token masked stays finite, and zero.
                bias = torch.zeros_like(keep, dtype=q.dtype).masked_fill(keep == 0, torch.finfo(q.dtype).min)
                bias = bias[:, None, None, :]
        out: Tensor = self.attention(q, k, v, bias)
        return out


class TransformerLayer(nn.Module):
    """Three residual steps."""

    def __init__(self, channels: int, options: TransformerOptions) -> None:
        super().__init__()
        heads, head_features = options.head_shape(channels)
        self.attention = SequenceAttention(channels, channels, heads, head_features)
        self.cross_attention = (
            SequenceAttention(channels, options.context_features, heads, head_features, options.exclude_masked_tokens)
            if options.context_features
            else None
        )
        hidden = channels * options.multiplier
        self.feed_forward = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor, context: Tensor | None, keep: Tensor | None) -> Tensor:
        x = x + self.attention(x, x)
        if self.cross_attention is not None:
            assert context is not None
            x = x + self.cross_attention(x, context, keep)
        out: Tensor = x + self.feed_forward(x)
        return out


class ToTime(nn.Module):
    """(b, c, t) -> (b, t, c), or back; a module so that its neighbours keep their place in state dicts."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Transformer1d(nn.Module):
    """Transformer layers over the frames of (b, c, t), without positions: the convolutions around know them."""

    def __init__(self, num_layers: int, channels: int, options: TransformerOptions) -> None:
        super().__init__()
        self.to_in = nn.Sequential(nn.GroupNorm(32, channels, eps=1e-6), SameConv1d(channels, channels, 1), ToTime())
        self.blocks = nn.ModuleList(TransformerLayer(channels, options) for _ in range(num_layers))
        self.to_out = nn.Sequential(ToTime(), SameConv1d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None, keep: Tensor | None) -> Tensor:
        x = self.to_in(x)
        for block in self.blocks:
            x = block(x, context, keep)
        out: Tensor = self.to_out(x)
        return out
