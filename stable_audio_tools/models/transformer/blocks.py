"""One transformer layer: self-attention, cross-attention, optional conformer module, feed-forward, each on a residual.

Local conditions are added before the feed-forward.

With a global condition, self-attention and feed-forward are modulated by adaptive layer norm (adaLN, Peebles & Xie
2023; the gates are sigmoid(1 - g)). Two layouts of its weights exist in published checkpoints:
"shared": one embedder in ContinuousTransformer gives all six vectors, to which each layer adds its own bias vector;
"per_layer": each layer projects the condition itself (friendly-stable-audio-tools).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from typing_extensions import TypedDict

from stable_audio_tools.core.config.kinds import ModularSignal
from stable_audio_tools.models.calls import published_call, used
from stable_audio_tools.models.transformer.attention import Attention, QKNorm, ScoreMod
from stable_audio_tools.models.transformer.cache import KeyValue, LayerCache
from stable_audio_tools.models.transformer.feedforward import GLU, FeedForward
from stable_audio_tools.models.transformer.local_conditions import (
    LocalConditions,
    LocalProjections,
    align_right,
    local_projection,
)
from stable_audio_tools.models.transformer.norms import DynamicTanh, LayerNorm, LayerScale, NormType, make_norm
from stable_audio_tools.models.transformer.rotary import PublishedAngles, Rotary, RotaryEmbedding

AdaLNLayout = Literal["shared", "per_layer"]


class AttentionOptions(TypedDict, total=False):
    """Options of every attention layer."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    qk_norm: QKNorm | bool
    qk_norm_eps: float
    differential: bool
    feat_scale: bool


class FeedForwardOptions(TypedDict, total=False):
    """Options of every feed-forward."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    mult: float
    no_bias: bool
    glu: bool
    use_conv: bool
    conv_kernel_size: int
    sinusoidal: bool


class NormOptions(TypedDict, total=False):
    """Options of every layer norm."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    bias: bool
    fix_scale: bool
    force_fp32: bool
    eps: float


class Modulation(NamedTuple):
    """Scale, shift and gate of one branch, (b, 1, d) each."""

    scale: Tensor
    shift: Tensor
    gate: Tensor

    def before(self, x: Tensor) -> Tensor:
        return x * (1 + self.scale) + self.shift

    def after(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1 - self.gate)


class ConformerModule(nn.Module):
    """Convolution over neighbouring positions (Gulati et al. 2020), with layer norm in place of batch norm."""

    def __init__(self, dim: int, norm_kwargs: Mapping[str, Any] | None = None, kernel_size: int = 17) -> None:
        super().__init__()
        self.in_norm = LayerNorm(dim, **(norm_kwargs or {}))
        self.pointwise_conv = nn.Conv1d(dim, dim, 1, bias=False)
        self.glu = GLU(dim, dim, nn.SiLU())
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
        self.mid_norm = LayerNorm(dim, **(norm_kwargs or {}))
        self.swish = nn.SiLU()
        self.pointwise_conv_2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (b, n, d) -> (b, n, d)
        """`mask` (b, n) is False at padding, which its neighbours then see as the end of the sequence."""
        x = self.glu(self._over_time(self.pointwise_conv, self.in_norm(x)))
        x = x if mask is None else x * mask[..., None].to(x.dtype)
        x = self._over_time(self.depthwise_conv, x)
        return self._over_time(self.pointwise_conv_2, self.swish(self.mid_norm(x)))

    @staticmethod
    def _over_time(conv: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = conv(x.transpose(1, 2)).transpose(1, 2)
        return out


class TransformerBlock(nn.Module):
    """One layer, (b, n, d) -> (b, n, d)."""

    to_scale_shift_gate: nn.Parameter | nn.Module | None

    def __init__(
        self,
        dim: int,
        dim_heads: int = 64,
        cross_attend: bool = False,
        dim_context: int | None = None,
        *,
        global_cond_dim: int | None = None,
        adaln_layout: AdaLNLayout = "shared",
        causal: bool = False,
        causal_cross_attention: bool = False,
        conformer: bool = False,
        add_rope: bool = False,
        norm_type: NormType = "layer_norm",
        remove_norms: bool = False,
        local_add_cond_dim: int | None = None,
        modular_local_cond_configs: Sequence[ModularSignal] | None = None,
        layer_scale: bool = False,
        zero_init_branch_outputs: bool = True,
        attn_kwargs: Mapping[str, Any] | None = None,
        norm_kwargs: Mapping[str, Any] | None = None,
        ff_kwargs: Mapping[str, Any] | None = None,
        layer_ix: int = -1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.dim_heads = min(dim_heads, dim)
        self.cross_attend = cross_attend
        self.layer_ix = layer_ix
        # A branch behind a near-zero layer scale that also ended in zeros would receive almost no gradient.
        zero_init = zero_init_branch_outputs and not layer_scale
        sharpness = {"qk_norm_alpha": 4.0} if norm_type == "dyt" else {}
        attention = {"dim_heads": self.dim_heads, "zero_init_output": zero_init, **sharpness, **(attn_kwargs or {})}

        def norm() -> nn.Module:
            return DynamicTanh(dim) if remove_norms else make_norm(norm_type, dim, norm_kwargs)

        def scale() -> nn.Module:
            return LayerScale(dim) if layer_scale else nn.Identity()

        self.pre_norm = norm()
        self.self_attn = Attention(dim, causal=causal, **attention)
        self.self_attn_scale = scale()
        if cross_attend:
            self.cross_attend_norm = norm()
            self.cross_attn = Attention(
                dim, dim_context=dim_context, causal=causal and causal_cross_attention, **attention
            )
            self.cross_attn_scale = scale()
        self.ff_norm = norm()
        self.ff = FeedForward(dim, zero_init_output=zero_init, **(ff_kwargs or {}))
        self.ff_scale = scale()
        self.conformer = ConformerModule(dim, norm_kwargs) if conformer else None
        if conformer:
            self.conformer_scale = scale()
        self.rope = RotaryEmbedding(self.dim_heads // 2) if add_rope else None
        self.to_scale_shift_gate = _adaln(adaln_layout, dim, global_cond_dim)
        self.to_local_embed = local_projection(local_add_cond_dim, dim) if local_add_cond_dim else None
        self.modular_local_embeds = LocalProjections(dim, modular_local_cond_configs or ())

    @published_call
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        global_cond: Tensor | None = None,
        rotary_pos_emb: Rotary | PublishedAngles | None = None,
        self_attention_block_mask: BlockMask | None = None,
        self_attention_score_mod: ScoreMod | None = None,
        cross_attention_block_mask: BlockMask | None = None,
        cross_attention_score_mod: ScoreMod | None = None,
        self_attention_flash_sliding_window: tuple[int, int] | list[int] | None = None,
        cross_attention_flash_sliding_window: tuple[int, int] | list[int] | None = None,
        *,
        context_rotary: Rotary | None = None,
        local: LocalConditions | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_key_value: KeyValue | None = None,
        past: LayerCache | None = None,
    ) -> Tensor:
        """x (b, n, d), context (b, s, c), global_cond (b, g) -> (b, n, d)

        Masks are True where keys may be seen. `context_key_value` stands for a context that was projected before. A
        context of fewer items belongs to the first items; the rest skip cross-attention.
        """
        frames = mask if past is None else None  # which positions of x are real
        to_self = used(
            flex_attention_block_mask=self_attention_block_mask,
            flex_attention_score_mod=self_attention_score_mod,
            flash_attn_sliding_window=self_attention_flash_sliding_window,
            mask=mask,
            query_mask=frames,
            past=past,
        )
        to_cross = used(
            flex_attention_block_mask=cross_attention_block_mask,
            flex_attention_score_mod=cross_attention_score_mod,
            flash_attn_sliding_window=cross_attention_flash_sliding_window,
            mask=context_mask,
            key_value=context_key_value,
            context_rotary=context_rotary,
        )
        if rotary_pos_emb is None and self.rope is not None:
            rotary_pos_emb = self.rope.table(x.shape[1], start=past.length if past else 0)
        attention_mod, ff_mod = self._modulations(global_cond)

        h = self.pre_norm(x)
        h = attention_mod.before(h) if attention_mod else h
        h = self.self_attn(h, rotary_pos_emb=rotary_pos_emb, **to_self)
        h = attention_mod.after(h) if attention_mod else h
        x = x + self.self_attn_scale(h)

        attended = context if context_key_value is None else context_key_value.key
        if self.cross_attend and attended is not None:
            h = self.cross_attend_norm(x[: len(attended)])
            if context_rotary is not None:
                to_cross["rotary_pos_emb"] = rotary_pos_emb
            if frames is not None:
                to_cross["query_mask"] = frames[: len(attended)]
            h = self.cross_attn(h, context=context, **to_cross)
            x = _add_to_first(x, self.cross_attn_scale(h))

        if self.conformer is not None:
            x = x + self.conformer_scale(self.conformer(x, **used(mask=frames)))
        if local is not None:
            x = self._add_local(x, local)

        h = self.ff_norm(x)
        h = ff_mod.before(h) if ff_mod else h
        h = self.ff(h, **used(mask=frames))
        h = ff_mod.after(h) if ff_mod else h
        out: Tensor = x + self.ff_scale(h)
        return out

    def _add_local(self, x: Tensor, local: LocalConditions) -> Tensor:
        if local.joined is not None and self.to_local_embed is not None:
            x = x + align_right(self.to_local_embed(local.joined), x.shape[1])
        for id, project in self.modular_local_embeds.items():
            if local.modular is not None and id in local.modular:
                x = x + align_right(project(local.modular[id]), x.shape[1])
        return x

    def _modulations(self, global_cond: Tensor | None) -> tuple[Modulation | None, Modulation | None]:
        """Return the modulations of attention and feed-forward; in the shared layout the condition is (b, 6 * d)."""
        if self.to_scale_shift_gate is None or global_cond is None:
            return None, None
        if isinstance(self.to_scale_shift_gate, Tensor):  # a parameter, or a tensor that torch.func puts in its place
            vectors = self.to_scale_shift_gate + global_cond
        else:
            vectors = self.to_scale_shift_gate(global_cond)
        parts = vectors[:, None].chunk(6, dim=-1)
        return Modulation(*parts[:3]), Modulation(*parts[3:])


def _add_to_first(x: Tensor, h: Tensor) -> Tensor:
    """x with h added to as many of its first items as h has; x is written over where no gradient needs it."""
    if len(h) == len(x):
        return x + h
    if x.requires_grad or h.requires_grad:
        return torch.cat([x[: len(h)] + h, x[len(h) :]])
    x[: len(h)] += h
    return x


def _adaln(layout: AdaLNLayout, dim: int, global_cond_dim: int | None) -> nn.Parameter | nn.Module | None:
    if not global_cond_dim:
        return None
    if layout == "shared":
        return nn.Parameter(torch.randn(6 * dim) / dim**0.5)
    project = nn.Linear(global_cond_dim, 6 * dim, bias=False)
    nn.init.zeros_(project.weight)
    return nn.Sequential(nn.SiLU(), project)
