"""Multi-head attention: projections, norms of queries and keys, rotary positions. The kernel is backends.py's."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from stable_audio_tools.models.calls import published_call, used
from stable_audio_tools.models.transformer.backends import Reach, attention_backend
from stable_audio_tools.models.transformer.cache import KeyValue, LayerCache
from stable_audio_tools.models.transformer.norms import DynamicTanh, RMSNorm
from stable_audio_tools.models.transformer.rotary import PublishedAngles, Rotary, as_rotary, rotate

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # score, item, head, query, key -> score
QKNorm = Literal["none", "l2", "ln", "rms", "dyt"]


class Attention(nn.Module):
    """Self-attention, or with `dim_context` cross-attention.

    A context narrower than the queries has fewer key-value heads, each shared by a group of query heads. Differential
    attention (after Ye et al. 2024) subtracts a second attention map: its heads follow the first's, on the head axis.
    """

    is_cross: bool

    def __init__(
        self,
        dim: int,
        dim_heads: int = 64,
        dim_context: int | None = None,
        *,
        qk_norm: QKNorm | bool = "none",
        qk_norm_eps: float = 1e-6,
        qk_norm_alpha: float = 10.0,
        differential: bool = False,
        feat_scale: bool = False,
        causal: bool = False,
        zero_init_output: bool = True,
    ) -> None:
        super().__init__()
        dim_kv = dim if dim_context is None else dim_context
        _check_heads(dim, dim_kv, dim_heads)
        self.dim = dim
        self.dim_heads = dim_heads
        self.num_heads = dim // dim_heads
        self.kv_heads = dim_kv // dim_heads
        self.causal = causal
        self.differential = differential
        self.feat_scale = feat_scale
        maps = 2 if differential else 1
        if dim_context is None:
            self.to_qkv = nn.Linear(dim, dim * (2 * maps + 1), bias=False)
        else:
            self.to_q = nn.Linear(dim, dim * maps, bias=False)
            self.to_kv = nn.Linear(dim_kv, dim_kv * (maps + 1), bias=False)
        self.is_cross = dim_context is not None
        self.to_out = nn.Linear(dim, dim, bias=False)
        if zero_init_output:
            nn.init.zeros_(self.to_out.weight)
        self.qk_norm = _norm_name(qk_norm)
        if self.qk_norm == "ln":
            self.q_norm: nn.Module = nn.LayerNorm(dim_heads, eps=qk_norm_eps)
            self.k_norm: nn.Module = nn.LayerNorm(dim_heads, eps=qk_norm_eps)
        elif self.qk_norm == "rms":
            self.q_norm, self.k_norm = RMSNorm(dim_heads, eps=qk_norm_eps), RMSNorm(dim_heads, eps=qk_norm_eps)
        elif self.qk_norm == "dyt":
            self.q_norm = DynamicTanh(dim_heads, init_alpha=qk_norm_alpha)
            self.k_norm = DynamicTanh(dim_heads, init_alpha=qk_norm_alpha)
        if feat_scale:
            self.lambda_dc = nn.Parameter(torch.zeros(dim))
            self.lambda_hf = nn.Parameter(torch.zeros(dim))

    @published_call
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rotary_pos_emb: Rotary | PublishedAngles | None = None,
        causal: bool | None = None,
        flex_attention_block_mask: BlockMask | None = None,
        flex_attention_score_mod: ScoreMod | None = None,
        flash_attn_sliding_window: tuple[int, int] | list[int] | None = None,
        *,
        context_rotary: Rotary | None = None,
        mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        key_value: KeyValue | None = None,
        past: LayerCache | None = None,
    ) -> Tensor:
        """x (b, n, d), context (b, s, c) -> (b, n, d)

        The window is [before, after], -1 without limit. `mask` (b, keys) is True at keys that may be seen, `query_mask`
        (b, n) at queries that count in the mean of `feat_scale`. `context_rotary` are the positions of a context, else
        it has those of x. `key_value` stands for a context projected before (`project_context`). `past` takes this
        call's keys and values and returns all so far.
        """
        if self.is_cross:
            q = self._normalise_queries(self._heads(self.to_q(x).chunk(2 if self.differential else 1, dim=-1)))
            kv = self._project_cross(x if context is None else context) if key_value is None else key_value
        else:
            q, kv = self._project_self(x)
        if rotary_pos_emb is not None:
            of_queries = as_rotary(rotary_pos_emb)
            of_keys = of_queries if context_rotary is None else context_rotary
            q, kv = rotate(q, of_queries), KeyValue(rotate(kv.key, of_keys), kv.value)
        if past is not None:
            kv = past.append(kv)
        causal = self.causal if causal is None else causal
        options = used(
            flex_attention_block_mask=flex_attention_block_mask,
            flex_attention_score_mod=flex_attention_score_mod,
            flash_attn_sliding_window=flash_attn_sliding_window,
            mask=mask,
        )
        out = self.apply_attn(q, kv.key, kv.value, causal=causal, **options)
        if self.differential:
            first, second = out.chunk(2, dim=1)
            out = first - second
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return self._rescale_features(out, query_mask) if self.feat_scale else out

    @published_call
    def apply_attn(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool | None = None,
        flex_attention_block_mask: BlockMask | None = None,
        flex_attention_score_mod: ScoreMod | None = None,
        flash_attn_sliding_window: tuple[int, int] | list[int] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """q (b, h, n, d), k and v (b, h or kv_heads, s, d) -> (b, h, n, d)

        Differential attention hands in its two maps as heads. A block mask or score function runs FlexAttention, which
        windows do not reach.
        """
        k, v = self._for_every_query_head(k), self._for_every_query_head(v)
        if flex_attention_block_mask is not None or flex_attention_score_mod is not None:
            if causal or mask is not None:
                raise ValueError(
                    "a block mask or score function cannot be combined with causal attention or a key mask"
                )
            out = flex_attention(q, k, v, block_mask=flex_attention_block_mask, score_mod=flex_attention_score_mod)
            assert isinstance(out, Tensor), "statistics were not asked for"
            return out
        reach = Reach.of(bool(causal), flash_attn_sliding_window, first=0 if self.is_cross and causal else None)
        return attention_backend().attend(q, k, v, reach, mask)

    def project_context(self, context: Tensor) -> KeyValue:
        """Keys and values of a context (b, s, c), for any number of calls."""
        return KeyValue(*(self._for_every_query_head(part) for part in self._project_cross(context)))

    def _project_cross(self, context: Tensor) -> KeyValue:
        parts = self.to_kv(context).chunk(3 if self.differential else 2, dim=-1)
        return self._finish(self._heads(parts[:-1]), self._heads(parts[-1:]))

    def _for_every_query_head(self, x: Tensor) -> Tensor:
        """(b, maps * kv_heads, s, d) -> (b, maps * h, s, d), each head repeated for its group of query heads."""
        repeats = self.num_heads * (2 if self.differential else 1) // x.shape[1]
        return x.repeat_interleave(repeats, dim=1) if repeats > 1 else x

    def _project_self(self, x: Tensor) -> tuple[Tensor, KeyValue]:
        if self.differential:
            q, k, v, q_second, k_second = self.to_qkv(x).chunk(5, dim=-1)
            queries, keys = self._heads((q, q_second)), self._heads((k, k_second))
        else:
            q, k, v = self.to_qkv(x).chunk(3, dim=-1)
            queries, keys = self._heads((q,)), self._heads((k,))
        return self._normalise_queries(queries), self._finish(keys, self._heads((v,)))

    def _heads(self, parts: tuple[Tensor, ...]) -> Tensor:
        """[(b, n, h * d)] -> (b, maps * h, n, d)"""
        split = [part.unflatten(-1, (-1, self.dim_heads)).transpose(1, 2) for part in parts]
        return split[0] if len(split) == 1 else torch.cat(split, dim=1)

    def _finish(self, key: Tensor, value: Tensor) -> KeyValue:
        """Normalised keys, and as many maps of both as there are of the queries."""
        if self.qk_norm == "l2":
            key = F.normalize(key, dim=-1)
        elif self.qk_norm != "none":
            key = self.k_norm(key).to(key.dtype)
        return KeyValue(key, torch.cat([value, value], dim=1) if self.differential else value)

    def _normalise_queries(self, q: Tensor) -> Tensor:
        if self.qk_norm == "l2":
            return F.normalize(q, dim=-1)
        return q if self.qk_norm == "none" else self.q_norm(q).to(q.dtype)

    def _rescale_features(self, x: Tensor, counted: Tensor | None) -> Tensor:
        """Weigh the mean over time and the deviations from it (Wang et al. 2022, "FeatScale")."""
        if counted is None:
            mean = x.mean(dim=1, keepdim=True)
        else:
            weights = counted[..., None].to(x.dtype)
            mean = (x * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return x + self.lambda_dc * mean + self.lambda_hf * (x - mean)


def _norm_name(given: QKNorm | bool) -> QKNorm:
    """Configs of friendly-stable-audio-tools say true for what is "l2" here."""
    name: QKNorm = ("l2" if given else "none") if isinstance(given, bool) else given
    if name not in ("none", "l2", "ln", "rms", "dyt"):
        raise ValueError(f"qk_norm is {given!r}; allowed: none, l2, ln, rms, dyt")
    return name


def _check_heads(dim: int, dim_kv: int, dim_heads: int) -> None:
    if dim % dim_heads:
        raise ValueError(f"width {dim} does not divide into heads of {dim_heads} channels")
    if dim_kv % dim_heads or (dim // dim_heads) % max(1, dim_kv // dim_heads):
        allowed = map(str, context_widths(dim, dim_heads))
        raise ValueError(
            f"a context of width {dim_kv} does not fit {dim // dim_heads} heads of {dim_heads} channels: its heads "
            f"must divide theirs; allowed widths: {', '.join(allowed)}"
        )


def context_widths(dim: int, dim_heads: int) -> list[int]:
    """Widths that a context may have."""
    heads = dim // dim_heads
    return [dim_heads * n for n in range(1, heads + 1) if heads % n == 0]
