"""A stack of transformer layers over continuous inputs.

[memory tokens | prepended tokens | inputs] + positions -> layers -> [prepended tokens | outputs]
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.models.calls import published_call, used
from stable_audio_tools.models.transformer.blocks import AdaLNLayout, TransformerBlock
from stable_audio_tools.models.transformer.cache import KeyValue, KeyValueCache
from stable_audio_tools.models.transformer.local_conditions import LocalConditions
from stable_audio_tools.models.transformer.rotary import (
    AbsolutePositionalEmbedding,
    Rotary,
    RotaryEmbedding,
    ScaledSinusoidalEmbedding,
)


class TransformerOutput(NamedTuple):
    """`output` (b, prepended + n, dim_out), on an early exit (.., dim); hidden states, if kept, with memory tokens."""

    output: Tensor
    hidden_states: list[Tensor]


class ContinuousTransformer(nn.Module):
    """The stack; options that it does not know go to every `TransformerBlock`.

    `checkpointing` recomputes activations in the backward pass. It costs time and saves memory, and has no effect
    where no gradients are kept.
    """

    looks_ahead: str  # why a position depends on later ones, for a sentence; empty if none does

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        dim_heads: int = 64,
        dim_in: int | None = None,
        dim_out: int | None = None,
        cond_token_dim: int | None = None,
        cross_attend: bool = False,
        final_cross_attn_ix: int = -1,
        causal: bool = False,
        sliding_window: Sequence[int] | None = None,
        num_memory_tokens: int = 0,
        global_cond_dim: int | None = None,
        adaln_layout: AdaLNLayout = "shared",
        rotary_pos_emb: bool = True,
        cross_attn_rotary_pos_emb: bool = False,
        use_abs_pos_emb: bool = False,
        abs_pos_emb_max_length: int = 10000,
        use_sinusoidal_emb: bool = False,
        conformer: bool = False,
        zero_init_branch_outputs: bool = True,
        checkpointing: bool = False,
        **block_options: Any,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.depth = depth
        self.causal = causal
        self.num_memory_tokens = num_memory_tokens
        self.final_cross_attn_ix = final_cross_attn_ix
        self.sliding_window = None if sliding_window is None else (sliding_window[0], sliding_window[1])
        self.checkpointing = checkpointing
        self.looks_ahead = _reasons_to_look_ahead(causal, conformer, block_options)

        self.project_in = nn.Identity() if dim_in is None else nn.Linear(dim_in, dim, bias=False)
        self.project_out = nn.Identity() if dim_out is None else nn.Linear(dim, dim_out, bias=False)
        # Half of a head, at least 32 channels, at most the head.
        self.rotary_pos_emb = RotaryEmbedding(min(max(dim_heads // 2, 32), dim_heads)) if rotary_pos_emb else None
        if cross_attn_rotary_pos_emb and not rotary_pos_emb:
            raise ValueError("cross_attn_rotary_pos_emb needs rotary_pos_emb, which gives the queries their positions")
        self.cross_attn_rotary_pos_emb = (
            RotaryEmbedding(min(max(dim_heads // 2, 32), dim_heads)) if cross_attn_rotary_pos_emb else None
        )
        if num_memory_tokens:
            self.memory_tokens = nn.Parameter(torch.randn(num_memory_tokens, dim))
        self.pos_emb: nn.Module | None = None
        if use_abs_pos_emb:
            self.pos_emb = AbsolutePositionalEmbedding(dim, abs_pos_emb_max_length + num_memory_tokens)
        elif use_sinusoidal_emb:
            self.pos_emb = ScaledSinusoidalEmbedding(dim)
        self.global_cond_embedder: nn.Module | None = None
        if global_cond_dim is not None and adaln_layout == "shared":
            self.global_cond_embedder = nn.Sequential(
                nn.Linear(global_cond_dim, dim), nn.SiLU(), nn.Linear(dim, 6 * dim)
            )
        self.layers = nn.ModuleList(
            TransformerBlock(
                dim,
                dim_heads=dim_heads,
                cross_attend=cross_attend and (final_cross_attn_ix == -1 or index <= final_cross_attn_ix),
                dim_context=cond_token_dim,
                global_cond_dim=global_cond_dim,
                causal=causal,
                zero_init_branch_outputs=zero_init_branch_outputs,
                conformer=conformer,
                layer_ix=index,
                adaln_layout=adaln_layout,
                **block_options,
            )
            for index in range(depth)
        )

    @published_call
    def forward(
        self,
        x: Tensor,
        prepend_embeds: Tensor | None = None,
        global_cond: Tensor | None = None,
        return_info: bool = False,
        use_checkpointing: bool | None = None,
        exit_layer_ix: int | None = None,
        **inputs: Any,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """As `run`, returning the output; with `return_info` also {"hidden_states": [...]}."""
        result = self.run(
            x,
            prepend_embeds=prepend_embeds,
            global_cond=global_cond,
            keep_hidden_states=return_info,
            use_checkpointing=use_checkpointing,
            exit_layer_ix=exit_layer_ix,
            **inputs,
        )
        return (result.output, {"hidden_states": result.hidden_states}) if return_info else result.output

    def run(
        self,
        x: Tensor,
        *,
        prepend_embeds: Tensor | None = None,
        global_cond: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        mask: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        context_key_values: Sequence[KeyValue | None] | None = None,
        rotary: Rotary | None = None,
        local: LocalConditions | None = None,
        cache: KeyValueCache | None = None,
        keep_hidden_states: bool = False,
        use_checkpointing: bool | None = None,
        exit_layer_ix: int | None = None,
        **layer_options: Any,
    ) -> TransformerOutput:
        """x (b, n, dim_in), prepend_embeds (b, p, dim), global_cond (b, g), context (b, s, c)

        Masks (b, length) are True where keys may be seen. `context_key_values` and `rotary` are what a series of
        calls has in common (`project_context`, `rotary_table`). With a `cache`, x holds the positions after those of
        the earlier calls. `exit_layer_ix` returns the states after that layer, without the output projection. Other
        options go to every layer.
        """
        start = self._prepare_cache(cache)
        x = self.project_in(x.to(self._dtype()))
        x, mask = self._with_prefix(x, prepend_embeds, mask, prepend_mask, with_memory=start == 0)
        mask = mask if cache is None else cache.extend_mask(mask, x)
        prefix = self.num_memory_tokens if start == 0 else 0
        if self.pos_emb is not None:
            x = x + self.pos_emb(x, start=start)
        if rotary is None:
            rotary = self.rotary_table(x.shape[1], start)
        if global_cond is not None and self.global_cond_embedder is not None:
            global_cond = self.global_cond_embedder(global_cond)
        if cache is not None and context_key_values is None and context is not None:
            cache.context = cache.context or self.project_context(context)
            context_key_values = cache.context

        context_rotary = self._context_rotary(context)

        hidden_states: list[Tensor] = []
        recompute = self.checkpointing if use_checkpointing is None else use_checkpointing
        for index, layer in enumerate(self.layers):
            inputs = used(
                context=context,
                global_cond=global_cond,
                rotary_pos_emb=rotary,
                context_rotary=context_rotary,
                local=local,
                self_attention_flash_sliding_window=self.sliding_window,
                mask=mask,
                context_mask=context_mask,
                context_key_value=context_key_values[index] if context_key_values is not None else None,
                past=cache.layers[index] if cache is not None else None,
            )
            inputs |= layer_options
            if recompute and torch.is_grad_enabled():
                x = checkpoint(partial(layer, **inputs), x, use_reentrant=False)
            else:
                x = layer(x, **inputs)
            if keep_hidden_states:
                hidden_states.append(x)
            if index == exit_layer_ix:
                return TransformerOutput(x[:, prefix:], hidden_states)
        return TransformerOutput(self.project_out(x[:, prefix:]), hidden_states)

    def project_context(self, context: Tensor) -> tuple[KeyValue | None, ...]:
        """Keys and values of a context (b, s, c) in every layer; None where a layer does not attend to it."""
        return tuple(
            layer.cross_attn.project_context(context) if layer.cross_attend else None for layer in self._blocks()
        )

    def rotary_table(self, positions: int, start: int = 0) -> Rotary | None:
        """Angles of so many positions, memory and prepended tokens counted."""
        if self.rotary_pos_emb is None:
            return None
        return self.rotary_pos_emb.table(positions, start)

    def _context_rotary(self, context: Tensor | None) -> Rotary | None:
        """Angles of the context's positions, which end at its width, as published weights were trained."""
        if self.cross_attn_rotary_pos_emb is None or context is None:
            return None
        return self.cross_attn_rotary_pos_emb.table(context.shape[1], context.shape[2] - context.shape[1])

    def _blocks(self) -> list[TransformerBlock]:
        return [layer for layer in self.layers if isinstance(layer, TransformerBlock)]

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _prepare_cache(self, cache: KeyValueCache | None) -> int:
        """-> the position of the first input"""
        if cache is None:
            return 0
        if self.looks_ahead:
            raise ValueError(f"a key-value cache needs a causal transformer, and here {self.looks_ahead}")
        cache.prepare(self.depth)
        return cache.length

    def _with_prefix(
        self, x: Tensor, prepended: Tensor | None, mask: Tensor | None, prepend_mask: Tensor | None, with_memory: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Memory and prepended tokens before x, and a mask over all if there is any."""
        parts, masks = [x], [mask]
        if prepended is not None:
            if prepended.shape[-1] != self.dim:
                raise ValueError(f"prepended tokens have width {prepended.shape[-1]}, the transformer {self.dim}")
            parts, masks = [prepended.to(x.dtype), *parts], [prepend_mask, *masks]
        if self.num_memory_tokens and with_memory:
            parts, masks = [self.memory_tokens.expand(len(x), -1, -1), *parts], [None, *masks]
        whole = torch.cat(parts, dim=1) if len(parts) > 1 else x
        if all(part is None for part in masks):
            return whole, None
        seen = [
            torch.ones(part.shape[:2], dtype=torch.bool, device=x.device) if given is None else given.bool()
            for part, given in zip(parts, masks)
        ]
        return whole, torch.cat(seen, dim=1)


def _reasons_to_look_ahead(causal: bool, conformer: bool, options: Mapping[str, Any]) -> str:
    """Joined by "and"."""
    attention, feed_forward = options.get("attn_kwargs") or {}, options.get("ff_kwargs") or {}
    reasons = {
        "`causal` is false": not causal,
        "conformer convolutions look ahead": conformer,
        "`feat_scale` takes the mean over time": attention.get("feat_scale", False),
        "`use_conv` looks ahead": feed_forward.get("use_conv", False),
    }
    return " and ".join(reason for reason, holds in reasons.items() if holds)


def recomputing_modules(module: nn.Module) -> list[nn.Module]:
    """The modules inside whose `checkpointing` says whether they recompute activations in the backward pass."""
    return [inner for inner in module.modules() if isinstance(getattr(inner, "checkpointing", None), bool)]
