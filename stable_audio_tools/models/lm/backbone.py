"""The network between token embeddings and output heads: a causal transformer with three inputs for conditions."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.models.transformer import ContinuousTransformer, KeyValueCache
from stable_audio_tools.models.transformer.attention import context_widths
from stable_audio_tools.models.transformer.blocks import AttentionOptions, FeedForwardOptions, NormOptions


class AudioLMBackbone(nn.Module):
    """Base of the backbones: (b, s, embed_dim) -> (b, s, embed_dim), where no position depends on later ones."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(
        self,
        x: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Transform x (b, s, d) under tokens (b, n, c) with masks (b, n), True at real tokens, and global_cond (b, g).

        With a `cache`, x holds the positions that follow the earlier calls.
        """
        raise NotImplementedError


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    width, head = config.embed_dim, min(config.dim_heads, config.embed_dim)
    if width % head:
        yield "embed_dim", f"is {width}, not a multiple of dim_heads, {head}; use {max(1, round(width / head)) * head}"
    elif config.cross_attn_cond_dim and not config.project_cross_attn_cond:
        allowed = context_widths(width, head)
        if config.cross_attn_cond_dim not in allowed:
            yield (
                "cross_attn_cond_dim",
                f"is {config.cross_attn_cond_dim}; without project_cross_attn_cond it must be one of {allowed}",
            )
    blind = "a language model must not see what it predicts; leave it out"
    if config.conformer:
        yield "conformer", f"its convolutions look ahead, and {blind}"
    if (config.attn_kwargs or {}).get("feat_scale"):
        yield "attn_kwargs.feat_scale", f"it takes the mean over time, and {blind}"
    if (config.ff_kwargs or {}).get("use_conv"):
        yield "ff_kwargs.use_conv", f"its convolutions look ahead, and {blind}"


@register(
    "lm",
    "continuous_transformer",
    facts=lambda config: {
        "cross_attention_cond_ids": config.cross_attn_cond_dim,
        "prepend_cond_ids": config.prepend_cond_dim,
        "global_cond_ids": config.global_cond_dim,
    },
    check=_check,
)
class ContinuousTransformerAudioLMBackbone(AudioLMBackbone):
    """A causal transformer; conditions are prepended, attended to, or modulate its norms."""

    def __init__(  # long because it is the list of config keys
        self,
        embed_dim: Annotated[int, Field(ge=1, description="width of the transformer")],
        cross_attn_cond_dim: Annotated[int, Field(ge=0, description="width of the tokens attended to; 0: none")] = 0,
        prepend_cond_dim: Annotated[int, Field(ge=0, description="width of the prepended tokens; 0: none")] = 0,
        project_cross_attn_cond: Annotated[
            bool, Field(description="project the tokens attended to; else fewer key-value heads share the query heads")
        ] = False,
        *,
        global_cond_dim: Annotated[int, Field(ge=0, description="width of the global condition; 0: none")] = 0,
        depth: Annotated[int, Field(ge=1, le=1000, description="transformer layers")],
        dim_heads: Annotated[int, Field(ge=1, description="channels of each attention head")] = 64,
        rotary_pos_emb: Annotated[bool, Field(description="rotary positions")] = True,
        use_sinusoidal_emb: Annotated[bool, Field(description="add sinusoidal positions")] = False,
        use_abs_pos_emb: Annotated[bool, Field(description="add learned positions")] = False,
        abs_pos_emb_max_length: Annotated[int, Field(ge=1, description="learned positions, prepended included")] = (
            10000
        ),
        num_memory_tokens: Annotated[int, Field(ge=0, description="learned tokens before all others")] = 0,
        sliding_window: Annotated[
            Annotated[list[int], Field(min_length=2, max_length=2)] | None,
            Field(description="[tokens before, tokens after] that self-attention sees; none after in any case"),
        ] = None,
        final_cross_attn_ix: Annotated[int, Field(ge=-1, description="last layer that cross-attends; -1: all do")] = -1,
        zero_init_branch_outputs: Annotated[bool, Field(description="start every branch at zero")] = True,
        layer_scale: Annotated[bool, Field(description="learned gain per channel on every branch")] = False,
        remove_norms: Annotated[bool, Field(description="dynamic tanh instead of layer norm")] = False,
        add_rope: Annotated[
            bool, Field(description="separate rotary positions in each layer, without rotary_pos_emb")
        ] = (False),
        conformer: Annotated[bool, Field(description="cannot be used: it looks ahead")] = False,
        checkpointing: Annotated[
            bool, Field(description="recompute activations in the backward pass: slower, far less memory")
        ] = False,
        attn_kwargs: Annotated[AttentionOptions | None, Field(description="of all attention layers")] = None,
        ff_kwargs: Annotated[FeedForwardOptions | None, Field(description="of all feed-forwards")] = None,
        norm_kwargs: Annotated[NormOptions | None, Field(description="of all layer norms")] = None,
    ) -> None:
        super().__init__(embed_dim)
        attends = cross_attn_cond_dim > 0
        context_dim = embed_dim if project_cross_attn_cond else cross_attn_cond_dim
        self.model = ContinuousTransformer(
            embed_dim,
            depth,
            dim_in=embed_dim,
            dim_out=embed_dim,
            dim_heads=dim_heads,
            causal=True,
            cross_attend=attends,
            cond_token_dim=context_dim if attends else None,
            global_cond_dim=global_cond_dim or None,
            rotary_pos_emb=rotary_pos_emb,
            use_sinusoidal_emb=use_sinusoidal_emb,
            use_abs_pos_emb=use_abs_pos_emb,
            abs_pos_emb_max_length=abs_pos_emb_max_length,
            num_memory_tokens=num_memory_tokens,
            sliding_window=sliding_window,
            final_cross_attn_ix=final_cross_attn_ix,
            zero_init_branch_outputs=zero_init_branch_outputs,
            layer_scale=layer_scale,
            remove_norms=remove_norms,
            add_rope=add_rope,
            conformer=conformer,
            checkpointing=checkpointing,
            attn_kwargs=attn_kwargs,
            ff_kwargs=ff_kwargs,
            norm_kwargs=norm_kwargs,
        )
        self.to_prepend_embed = _projection(prepend_cond_dim, embed_dim) if prepend_cond_dim else None
        projects = attends and project_cross_attn_cond
        self.to_cross_attn_embed = _projection(cross_attn_cond_dim, embed_dim) if projects else None
        self.attends = attends
        self.takes_global_cond = global_cond_dim > 0

    def forward(
        self,
        x: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        is_start = cache is None or cache.length == 0
        prepend = prepend_cond if is_start and self.to_prepend_embed is not None else None
        if prepend is not None and self.to_prepend_embed is not None:
            prepend = self.to_prepend_embed(prepend.to(x.dtype))
        projected = None if cache is None else cache.context
        context = cross_attn_cond.to(x.dtype) if self.attends and cross_attn_cond is not None else None
        if context is not None and projected is None and self.to_cross_attn_embed is not None:
            context = self.to_cross_attn_embed(context)
        output = self.model.run(
            x,
            prepend_embeds=prepend,
            prepend_mask=None if prepend is None else _with_first(prepend_cond_mask),
            context=context,
            context_key_values=projected,
            context_mask=None if context is None else _with_first(cross_attn_mask),
            global_cond=global_cond.to(x.dtype) if self.takes_global_cond and global_cond is not None else None,
            cache=cache,
        ).output
        return output[:, output.shape[1] - x.shape[1] :]


def _projection(dim: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, embed_dim, bias=False), nn.SiLU(), nn.Linear(embed_dim, embed_dim, bias=False))


def _with_first(mask: Tensor | None) -> Tensor | None:
    """Unmask the first token, since attention needs at least one token, even of an empty condition."""
    if mask is None:
        return None
    mask = mask.bool().clone()
    mask[:, 0] = True
    return mask
