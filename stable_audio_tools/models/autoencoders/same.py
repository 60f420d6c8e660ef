"""SAME, the autoencoder of Stable Audio 3: transformers that resample by query tokens, without strided convolutions.

Every `stride` frames of a stage share one learned query (encoder), or one frame has `stride` queries (decoder). Frames
and queries are neighbours in the sequence, attention runs over both, and the queries are the output of the stage:

    encoder, stride 4    | x x x x q | x x x x q |  ->  q q
    decoder, stride 4    | x q q q q | x q q q q |  ->  q q q q q q q q

Attention stays within a sliding window of such groups, or within chunks of `chunk_size` frames. With a midpoint shift
the second half of the layers sees the chunks shifted by half a chunk, so that information crosses their borders:

    first half           |  chunk 0  |  chunk 1  |
    second half    | 0a' 0a | 0b  1a | 1b  1b' |        (ends are repeated, and removed afterwards)

With chunks, lengths are padded with silence to whole chunks, and stay padded.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.autoencoders.layers import run_layer
from stable_audio_tools.models.autoencoders.levels import (
    Conformer,
    Depths,
    LayerScale,
    Multiples,
    Strides,
    Width,
    check_lengths,
    check_widths,
    describe_coder,
)
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d
from stable_audio_tools.models.calls import used
from stable_audio_tools.models.transformer import TransformerBlock
from stable_audio_tools.models.transformer.feedforward import Transpose

Side = Literal["encoder", "decoder"]

_EPS = 1e-3  # of every norm
_Window = Annotated[
    Annotated[Sequence[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None,
    Field(description="coarse frames that attention reaches back and ahead; null: chunks instead of a window"),
]
_Chunk = Annotated[int, Field(ge=1, description="fine frames of a chunk, a multiple of every stride; without a window")]
_Shift = Annotated[bool, Field(description="move the chunks by half of one in the second half of the layers")]
_Recompute = Annotated[bool, Field(description="recompute activations in the backward pass: less memory, slower")]
_Heads = Annotated[int, Field(ge=1, description="channels of an attention head")]
_Differential = Annotated[bool, Field(description="differential attention")]
_Variable = Annotated[bool, Field(description="one query for all positions, so that strides can change per call")]
_FeatScale = Annotated[bool, Field(description="learned gains of the mean over time and of the rest in attention")]
_Mult = Annotated[float, Field(gt=0, description="width of the feed-forwards, in widths of the stage")]
_Bias = Annotated[bool, Field(description="bias of the convolution between stages")]
_Dyt = Annotated[bool, Field(description="dynamic tanh for norms; else RMS norms")]
_ConvMapping = Annotated[bool, Field(description="kernel of 3 between stages instead of 1")]
_Noise = Annotated[float, Field(ge=0, description="noise on the queries, at inference too")]
_Frozen = Annotated[bool, Field(description="train only what maps between widths")]


class _Groups(NamedTuple):
    """Layout of the sequence of a pass, in tokens."""

    inputs: int  # of x in a group
    outputs: int  # queries in a group
    prepended: int
    window: tuple[int, int] | None
    chunk: int | None

    @property
    def size(self) -> int:
        return self.prepended + self.inputs + self.outputs


class TransformerResamplingBlock(nn.Module):
    """One stage; in the encoder frames become `stride` times fewer, in the decoder as many more."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        sliding_window: Sequence[int] | None = None,
        chunk_size: int = 128,
        chunk_midpoint_shift: bool = False,
        type: Side = "encoder",
        transformer_depth: int = 3,
        checkpointing: bool = False,
        conformer: bool = False,
        layer_scale: bool = False,
        dim_heads: int = 128,
        differential: bool = True,
        variable_stride: bool = False,
        feat_scale: bool = False,
        sinusoidal_blocks: int = 0,
        mask_noise: float = 0.0,
        ff_mult: float = 3,
        mapping_bias: bool = True,
        cross_attn: bool = False,
        dyt: bool = True,
        conv_mapping: bool = False,
        freeze_backbone: bool = False,
    ) -> None:
        """Build the layers; `sinusoidal_blocks` n gives the last n - 1 of them sine gates, as published."""
        super().__init__()
        if type not in ("encoder", "decoder"):
            raise ValueError(f"type is {type!r}; a stage is of an 'encoder' or of a 'decoder'")
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.side: Side = type
        self.sliding_window = None if sliding_window is None else (sliding_window[0], sliding_window[1])
        self.chunk_size = chunk_size
        self.chunk_midpoint_shift = chunk_midpoint_shift
        self.transformer_depth = transformer_depth
        self.checkpointing = checkpointing
        self.variable_stride = variable_stride
        self.mask_noise = mask_noise
        dim = out_channels if type == "encoder" else in_channels
        kernel = 3 if conv_mapping else 1
        self.mapping: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.mapping = WNConv1d(in_channels, out_channels, kernel, padding=kernel // 2, bias=mapping_bias)
        queries = self._groups(stride, 0).outputs
        self.new_tokens = nn.Parameter(1e-5 * torch.randn(1, 1 if variable_stride else queries, dim))
        self.transformers = nn.ModuleList(
            TransformerBlock(
                dim,
                dim_heads=dim_heads,
                cross_attend=cross_attn,
                zero_init_branch_outputs=not layer_scale,
                norm_type="dyt" if dyt else "rms_norm",
                conformer=conformer,
                layer_scale=layer_scale,
                add_rope=True,
                attn_kwargs={
                    "qk_norm": "dyt" if dyt else "rms",
                    "qk_norm_eps": _EPS,
                    "differential": differential,
                    "feat_scale": feat_scale,
                },
                ff_kwargs={"mult": ff_mult, "sinusoidal": transformer_depth - index < sinusoidal_blocks},
                norm_kwargs={"eps": _EPS},
            )
            for index in range(transformer_depth)
        )
        if freeze_backbone:
            self.transformers.requires_grad_(False)
            self.new_tokens.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        stride: int | None = None,
        return_features: bool = False,
        override_new_tokens: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        cross_attn_cond: Tensor | None = None,
    ) -> Any:
        """Resample x (b, c, n) to (b, c', m); with `return_features`, also return the hidden states of every layer.

        `stride` replaces the stride of the config. `override_new_tokens` (b, m, d) is added to the queries in place of
        noise, `prepend_cond` (b, p, d) precedes every group. Features are (b, tokens, d), the first without queries;
        with chunks and no shift, (b * chunks, tokens, d).
        """
        if stride not in (None, self.stride) and not self.variable_stride:
            raise ValueError(
                f"a stride of {stride} needs variable_stride; this stage has queries for a stride of {self.stride} only"
            )
        prepended = 0 if prepend_cond is None else prepend_cond.shape[1]
        groups = self._groups(self.stride if stride is None else stride, prepended)
        if self.side == "encoder":
            # Silence is mapped like sound, so it is added first.
            x = self.mapping(self._padded(x, groups) if self.transformer_depth else x)
        features: list[Tensor] = []
        if self.transformer_depth:
            x = x.transpose(1, 2)
            features.append(x)
            if self.side == "decoder":
                x = self._padded(x.transpose(1, 2), groups).transpose(1, 2)
            sequence = self._with_queries(x, groups, override_new_tokens, prepend_cond)
            sequence, hidden = self._attend(sequence, groups, cross_attn_cond)
            features += hidden
            x = sequence.unflatten(1, (-1, groups.size))[:, :, -groups.outputs :].flatten(1, 2).transpose(1, 2)
        if self.side == "decoder":
            x = self.mapping(x)
        return (x, features) if return_features else x

    @property
    def frames_per_chunk(self) -> int | None:
        """Number of coarse frames in a chunk; None with a window."""
        return None if self.sliding_window is not None else self.chunk_size // self.stride

    def _groups(self, stride: int, prepended: int) -> _Groups:
        inputs, outputs = (stride, 1) if self.side == "encoder" else (1, stride)
        if self.sliding_window is not None:
            before, after = (side * (stride + 1 + prepended) for side in self.sliding_window)
            return _Groups(inputs, outputs, prepended, (before, after), None)
        if self.chunk_size % stride:
            raise ValueError(f"chunk_size is {self.chunk_size}; it must be a multiple of the stride, {stride}")
        return _Groups(inputs, outputs, prepended, None, self.chunk_size // stride * (stride + 1 + prepended))

    def _padded(self, x: Tensor, groups: _Groups) -> Tensor:
        """Pad (b, c, n) with zeros at the end to a whole number of groups, or of chunks."""
        per_group = groups.inputs
        multiple = per_group if groups.chunk is None else groups.chunk // groups.size * per_group
        return F.pad(x, (0, -x.shape[-1] % multiple))

    def _with_queries(self, x: Tensor, groups: _Groups, given: Tensor | None, prepended: Tensor | None) -> Tensor:
        """Interleave x (b, n, d) with queries and prepended tokens: (b, tokens, d)."""
        batch = len(x)
        frames = rearrange(x, "b (n c) d -> (b n) c d", c=groups.inputs)
        queries = self.new_tokens.expand(len(frames), groups.outputs, -1)
        if given is not None:
            queries = queries + rearrange(given, "b (n c) d -> (b n) c d", c=groups.outputs)
        elif self.mask_noise > 0:
            queries = queries + torch.randn_like(queries) * self.mask_noise
        parts = [frames, queries.to(frames.dtype)]
        if prepended is not None:
            parts = [prepended.repeat_interleave(len(frames) // batch, dim=0), *parts]
        return rearrange(torch.cat(parts, dim=1), "(b n) c d -> b (n c) d", b=batch)

    def _attend(self, x: Tensor, groups: _Groups, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Run x (b, tokens, d) through the layers; also return the hidden states."""
        layers = list(self.transformers)
        if groups.chunk is None:
            return self._run(layers, x, context, groups.window)
        if not self.chunk_midpoint_shift:
            return self._run_chunks(layers, x, context, groups.chunk, folded_features=True)
        half = groups.chunk // 2
        if groups.chunk % 2:
            raise ValueError(
                f"chunk_midpoint_shift: a chunk has {groups.chunk} tokens with its queries, which cannot be halved; "
                "use a chunk_size of an even number of strides"
            )
        split = self.transformer_depth // 2
        x, first = self._run_chunks(layers[:split], x, context, groups.chunk)
        x = torch.cat([x[:, :half], x, x[:, -half:]], dim=1)
        x, second = self._run_chunks(layers[split:], x, context, groups.chunk)
        return x[:, half:-half], [*first, *(hidden[:, half:-half] for hidden in second)]

    def _run_chunks(
        self, layers: Sequence[nn.Module], x: Tensor, context: Tensor | None, chunk: int, folded_features: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        batch, count = len(x), x.shape[1] // chunk
        context = None if context is None else context.repeat_interleave(count, dim=0)
        folded, features = self._run(layers, x.reshape(batch * count, chunk, -1), context, None)
        if not folded_features:
            features = [hidden.reshape(x.shape) for hidden in features]
        return folded.reshape(x.shape), features

    def _run(
        self, layers: Sequence[nn.Module], x: Tensor, context: Tensor | None, window: tuple[int, int] | None
    ) -> tuple[Tensor, list[Tensor]]:
        features = []
        options = used(context=context, self_attention_flash_sliding_window=window)
        for layer in layers:
            x = run_layer(layer, x, self.checkpointing, **options)
            features.append(x)
        return x, features


def check_stages(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Check the lengths of the lists, that widths divide into heads, and chunks into strides."""
    keys = ["strides", "transformer_depths"]
    if isinstance(getattr(config, "sinusoidal_blocks", None), Sequence):
        keys.append("sinusoidal_blocks")
    yield from check_lengths(config, keys)
    yield from check_widths(config, config.dim_heads, " (dim_heads)")
    if config.sliding_window is not None:
        return
    for index, stride in enumerate(config.strides):
        if config.chunk_size % stride:
            yield "chunk_size", f"is {config.chunk_size}, not a multiple of strides[{index}], {stride}"
        elif config.chunk_midpoint_shift and config.chunk_size // stride * (stride + 1) % 2:
            yield (
                "chunk_size",
                f"is {config.chunk_size}; with chunk_midpoint_shift it must hold an even number of strides, and holds "
                f"{config.chunk_size // stride} of {stride}: use {2 * config.chunk_size}",
            )


_describe_encoder = partial(describe_coder, channels="in_channels")
_describe_decoder = partial(describe_coder, channels="out_channels")
_IGNORED = ("causal", "mapping_style", "use_flash")  # keys of published configs that have no effect upstream either


def _check_strides(strides: Sequence[int] | None, stages: int) -> Sequence[int | None]:
    if strides is None:
        return [None] * stages
    if len(strides) != stages:
        raise ValueError(f"override_stride has {len(strides)} entries; this model has {stages} stages, give one each")
    return strides


@register(
    "encoder", "same", ignored=_IGNORED, facts=lambda config: describe_coder(config, "in_channels"), check=check_stages
)
@register(
    "encoder",
    "taae_v2",
    ignored=_IGNORED,
    facts=lambda config: describe_coder(config, "in_channels"),
    check=check_stages,
)
class SAMEEncoder(nn.Module):
    """Transformer encoder of Stable Audio 3: patches of audio to latents."""

    pads_to_frames = True

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="channels of the patches")] = 2,
        channels: Width = 128,
        latent_dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 32,
        c_mults: Multiples = (1, 2, 4, 8),
        strides: Strides = (2, 4, 8, 8),
        transformer_depths: Depths = (3, 3, 3, 3),
        sliding_window: _Window = None,
        checkpointing: _Recompute = False,
        conformer: Conformer = False,
        layer_scale: LayerScale = False,
        differential: _Differential = True,
        variable_stride: _Variable = False,
        mask_noise: _Noise = 0.0,
        conv_mapping: _ConvMapping = False,
        freeze_backbone: _Frozen = False,
        chunk_size: _Chunk = 128,
        chunk_midpoint_shift: _Shift = False,
        dim_heads: _Heads = 128,
        feat_scale: _FeatScale = False,
        ff_mult: _Mult = 3,
        mapping_bias: _Bias = True,
        dyt: _Dyt = True,
        sinusoidal_blocks: Annotated[
            int, Field(ge=0, description="the last n - 1 layers of every stage have sine gates")
        ] = 0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.strides = list(strides)
        self.depth = len(c_mults)
        widths = [in_channels, *(channels * multiple for multiple in c_mults)]
        stages = [
            TransformerResamplingBlock(
                narrow,
                wide,
                stride,
                sliding_window,
                chunk_size,
                chunk_midpoint_shift,
                transformer_depth=depth,
                checkpointing=checkpointing,
                conformer=conformer,
                layer_scale=layer_scale,
                dim_heads=dim_heads,
                differential=differential,
                variable_stride=variable_stride,
                feat_scale=feat_scale,
                sinusoidal_blocks=sinusoidal_blocks,
                mask_noise=mask_noise,
                ff_mult=ff_mult,
                mapping_bias=mapping_bias,
                dyt=dyt,
                conv_mapping=conv_mapping,
                freeze_backbone=freeze_backbone,
            )
            for narrow, wide, stride, depth in zip(widths, widths[1:], strides, transformer_depths)
        ]
        project = nn.Linear(widths[-1], latent_dim)
        project.requires_grad_(not freeze_backbone)
        self.layers = nn.ModuleList([*stages, Transpose(), project, Transpose()])

    @property
    def draws_noise(self) -> bool:
        """A pass draws random numbers."""
        return any(stage.mask_noise > 0 and stage.transformer_depth > 0 for stage in _stages(self.layers))

    @property
    def frames_per_chunk(self) -> int | None:
        """Number of latents in a chunk of the first stage; None with a window."""
        return next(_stages(self.layers)).frames_per_chunk

    def forward(self, x: Tensor, override_stride: Sequence[int] | None = None, return_features: bool = False) -> Any:
        """Encode x (b, c, n) to (b, d, t); with `return_features`, also return the hidden states of the last stage."""
        strides = iter(_check_strides(override_stride, self.depth))
        features: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, TransformerResamplingBlock):
                x, features = layer(x, next(strides), return_features=True)
            else:
                x = layer(x)
        return (x, features) if return_features else x


@register(
    "decoder", "same", ignored=_IGNORED, facts=lambda config: describe_coder(config, "out_channels"), check=check_stages
)
@register(
    "decoder",
    "taae_v2",
    ignored=_IGNORED,
    facts=lambda config: describe_coder(config, "out_channels"),
    check=check_stages,
)
class SAMEDecoder(nn.Module):
    """Transformer decoder of Stable Audio 3: latents to patches of audio."""

    def __init__(
        self,
        out_channels: Annotated[int, Field(ge=1, description="channels of the patches")] = 2,
        channels: Width = 128,
        latent_dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 32,
        c_mults: Multiples = (1, 2, 4, 8),
        strides: Strides = (2, 4, 8, 8),
        transformer_depths: Depths = (3, 3, 3, 3),
        sliding_window: _Window = None,
        checkpointing: _Recompute = False,
        conformer: Conformer = False,
        layer_scale: LayerScale = False,
        differential: _Differential = True,
        variable_stride: _Variable = False,
        sinusoidal_blocks: Annotated[
            Sequence[Annotated[int, Field(ge=0)]] | None,
            Field(description="n for each stage: its last n - 1 layers have sine gates"),
        ] = None,
        mask_noise: _Noise = 0.0,
        conv_mapping: _ConvMapping = False,
        freeze_backbone: _Frozen = False,
        chunk_size: _Chunk = 128,
        chunk_midpoint_shift: _Shift = False,
        dim_heads: _Heads = 128,
        feat_scale: _FeatScale = False,
        ff_mult: _Mult = 3,
        mapping_bias: _Bias = True,
        dyt: _Dyt = True,
    ) -> None:
        super().__init__()
        self.depth = len(c_mults)
        widths = [out_channels, *(channels * multiple for multiple in c_mults)]
        sines = [0] * self.depth if sinusoidal_blocks is None else sinusoidal_blocks
        stages = [
            TransformerResamplingBlock(
                wide,
                narrow,
                stride,
                sliding_window,
                chunk_size,
                chunk_midpoint_shift,
                type="decoder",
                transformer_depth=depth,
                checkpointing=checkpointing,
                conformer=conformer,
                layer_scale=layer_scale,
                dim_heads=dim_heads,
                differential=differential,
                variable_stride=variable_stride,
                feat_scale=feat_scale,
                sinusoidal_blocks=sine,
                mask_noise=mask_noise,
                ff_mult=ff_mult,
                mapping_bias=mapping_bias,
                dyt=dyt,
                conv_mapping=conv_mapping,
                freeze_backbone=freeze_backbone,
            )
            for narrow, wide, stride, depth, sine in zip(widths, widths[1:], strides, transformer_depths, sines)
        ]
        project = nn.Linear(latent_dim, widths[-1])
        project.requires_grad_(not freeze_backbone)
        self.layers = nn.ModuleList([Transpose(), project, Transpose(), *reversed(stages)])

    @property
    def draws_noise(self) -> bool:
        """A pass draws random numbers."""
        return any(stage.mask_noise > 0 and stage.transformer_depth > 0 for stage in _stages(self.layers))

    def forward(self, latents: Tensor, override_stride: Sequence[int] | None = None) -> Tensor:
        """Decode latents (b, d, t) to (b, c, n); `override_stride` is in the order from latents to audio."""
        strides = iter(_check_strides(override_stride, self.depth))
        x = latents
        for layer in self.layers:
            x = layer(x, next(strides)) if isinstance(layer, TransformerResamplingBlock) else layer(x)
        return x


def _stages(layers: nn.ModuleList) -> Iterator[TransformerResamplingBlock]:
    return (layer for layer in layers if isinstance(layer, TransformerResamplingBlock))
