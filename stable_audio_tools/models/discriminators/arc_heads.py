"""Heads that score hidden states of a diffusion transformer, (b, d, t) -> (b, 1, frames), for ARC post-training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from stable_audio_tools.core.config import Key, Runtime, as_record, register
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.autoencoders.same import TransformerResamplingBlock
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d
from stable_audio_tools.models.discriminators.losses import LEAST_SQUARES, RELATIVISTIC, mean
from stable_audio_tools.models.transformer import TransformerBlock
from stable_audio_tools.models.transformer.attention import QKNorm
from stable_audio_tools.models.transformer.norms import RMSNorm

LossType = Literal["lsgan", "relativistic"]
_GROUPS = 32
_CONV_FRAMES = 64  # four halvings leave the kernel of the last convolution


class ScoringHead(nn.Module, ABC):
    """Scores of hidden states, one for each of its frames; several heads score at several strides."""

    def __init__(self, loss_type: LossType, fresh: Callable[[], "ScoringHead"]) -> None:
        """`fresh` builds the same head with new weights."""
        super().__init__()
        self.loss_type = loss_type
        self._fresh = fresh

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """x (b, d, t) -> scores (b, 1, frames), one tensor or one for each scale"""

    def reset_parameters(self) -> None:
        """Draw all weights again."""
        self.load_state_dict(self._fresh().state_dict())

    def loss(self, reals: Tensor, fakes: Tensor, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Return the losses of the critic (`loss_dis`) and of the generator (`loss_adv`) by the head's `loss_type`."""
        game = {"lsgan": LEAST_SQUARES, "relativistic": RELATIVISTIC}[self.loss_type]
        real, fake = self(reals), self(fakes)
        return {"loss_dis": game.critic(real, fake), "loss_adv": game.generator(real, fake)}


@register("discriminator_head", "conv", ignored=("loss_type",))
class ConvDiscriminator(ScoringHead):
    """Four strided convolutions, then one score per frame."""

    def __init__(
        self,
        channels: Runtime[int],
        hidden_dim: Annotated[
            int | None, Field(ge=1, description="width of the convolutions; null: the width of the states")
        ] = None,
        soft_clip_scale: Annotated[float | None, Field(gt=0, description="scores are kept within +- this")] = None,
        loss_type: Runtime[LossType] = "lsgan",
        anti_aliased: Annotated[
            bool, Field(description="also score the states shifted by one frame, as a second batch")
        ] = False,
    ) -> None:
        again = partial(ConvDiscriminator, channels, hidden_dim, soft_clip_scale, loss_type, anti_aliased)
        super().__init__(loss_type, again)
        self.soft_clip_scale, self.anti_aliased = soft_clip_scale, anti_aliased
        width = hidden_dim or channels
        layers: list[nn.Module] = []
        for before in (channels, width, width, width):
            down = nn.Conv1d(before, width, kernel_size=4, stride=2, padding=1)
            layers += [down, nn.GroupNorm(math.gcd(_GROUPS, width), width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, 1, kernel_size=4))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < _CONV_FRAMES:
            raise UserError(
                f"a critic of type 'conv' scores stretches of {_CONV_FRAMES} frames, and these latents have "
                f"{x.shape[-1]}; use a longer window, or another type of critic"
            )
        scores: Tensor = self.layers(x)
        if self.anti_aliased:
            scores = torch.cat([scores, self.layers(x.roll(1, -1))])
        if self.soft_clip_scale is None:
            return scores
        return self.soft_clip_scale * torch.tanh(scores / self.soft_clip_scale)


class ResidualDilatedBlock(nn.Module):
    """A dilated convolution and a plain one, on a residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in (dilation, 1):
            conv = weight_norm(nn.Conv1d(channels, channels, kernel_size=3, dilation=step, padding=step))
            layers += [conv, nn.GroupNorm(math.gcd(16, channels), channels), nn.LeakyReLU(0.2)]
        self.convs = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.convs(x)
        return out


@register("discriminator_head", "dilated_conv", ignored=("loss_type",))
class DilatedConvDiscriminator(ScoringHead):
    """Dilated convolutions at the rate of the states."""

    def __init__(
        self,
        channels: Runtime[int],
        hidden_dim: Annotated[int, Field(ge=1, description="width of the convolutions")] = 64,
        loss_type: Runtime[LossType] = "lsgan",
        dilations: Annotated[
            Sequence[Annotated[int, Field(ge=1)]], Field(description="dilation of each residual block")
        ] = (1, 2, 4, 1, 2, 4),
    ) -> None:
        super().__init__(loss_type, partial(DilatedConvDiscriminator, channels, hidden_dim, loss_type, dilations))
        self.start_conv = weight_norm(nn.Conv1d(channels, hidden_dim, kernel_size=3, padding=1))
        self.layers = nn.ModuleList(ResidualDilatedBlock(hidden_dim, dilation) for dilation in dilations)
        self.final_conv = nn.Sequential(
            nn.LeakyReLU(0.2),
            weight_norm(nn.Conv1d(hidden_dim, hidden_dim, kernel_size=3, padding=1)),
            nn.LeakyReLU(0.2),
            weight_norm(nn.Conv1d(hidden_dim, 1, kernel_size=3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.start_conv(x)
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.final_conv(x)
        return scores


Window = Annotated[Sequence[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


@register("discriminator_head", "transformer", ignored=("loss_type",))
class TransformerHead(ScoringHead):
    """Transformer layers with windowed attention at the rate of the states."""

    def __init__(
        self,
        channels: Runtime[int],
        hidden_dim: Annotated[int, Field(ge=1, description="width of the layers")] = 256,
        depth: Annotated[int, Field(ge=1, description="layers")] = 4,
        dim_heads: Annotated[int, Field(ge=1, description="channels of an attention head")] = 64,
        sliding_window: Annotated[Window, Field(description="frames that attention reaches back and ahead")] = (2, 2),
        differential: Annotated[bool, Field(description="differential attention")] = True,
        qk_norm: Annotated[QKNorm, Field(description="norm of queries and keys")] = "rms",
        ff_mult: Annotated[float, Field(gt=0, description="width of the feed-forwards, in widths of a layer")] = 2,
        loss_type: Runtime[LossType] = "lsgan",
    ) -> None:
        shape = (hidden_dim, depth, dim_heads, sliding_window, differential, qk_norm, ff_mult, loss_type)
        super().__init__(loss_type, partial(TransformerHead, channels, *shape))
        self.sliding_window = (sliding_window[0], sliding_window[1])
        self.proj_in = nn.Sequential(nn.Linear(channels, hidden_dim), RMSNorm(hidden_dim))
        self.layers = nn.ModuleList(
            TransformerBlock(
                hidden_dim,
                dim_heads=dim_heads,
                add_rope=True,
                norm_type="rms_norm",
                attn_kwargs={"qk_norm": qk_norm, "differential": differential},
                ff_kwargs={"mult": ff_mult},
            )
            for _ in range(depth)
        )
        self.to_scores = nn.Sequential(RMSNorm(hidden_dim), nn.Linear(hidden_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_in(x.mT)
        for layer in self.layers:
            x = layer(x, self_attention_flash_sliding_window=self.sliding_window)
        scores: Tensor = self.to_scores(x)
        return scores.mT


@dataclass(frozen=True)
class ScaleOptions:
    """One scale of a `multi_scale` head; what is null is as the head says."""

    name: Annotated[str | None, Field(description="for logs; its number if null")] = None
    stride: Annotated[int, Field(ge=1, description="frames to a score")] = 1
    hidden_dim: Annotated[int | None, Field(ge=1)] = None
    depth: Annotated[int | None, Field(ge=1)] = None
    sliding_window: Annotated[Window | None, Field(description="scores that attention reaches back and ahead")] = None
    dim_heads: Annotated[int | None, Field(ge=1)] = None
    differential: bool | None = None
    ff_mult: Annotated[float | None, Field(gt=0)] = None
    dyt: bool | None = None


_SCALES = (
    ScaleOptions("local", 1, 256, 2, (3, 3)),
    ScaleOptions("mid", 4, 256, 3, (12, 12)),
    ScaleOptions("global", 16, 256, 3, (96, 96)),
)


@register("discriminator_head", "multi_scale", ignored=("loss_type",))
class MultiScaleTransformerDiscriminator(ScoringHead):
    """Windowed transformers that resample the states, each to its own stride: (b, d, t) -> [(b, 1, t / stride), ...]"""

    def __init__(
        self,
        channels: Runtime[int],
        heads: Annotated[
            Sequence[ScaleOptions | Mapping[str, Any]] | None,
            Key(type=Sequence[ScaleOptions] | None),
            Field(description="the scales; null: local, mid and global at strides 1, 4 and 16"),
        ] = None,
        hidden_dim: Annotated[int, Field(ge=1, description="width of the layers")] = 256,
        depth: Annotated[int, Field(ge=1, description="layers of a scale")] = 3,
        dim_heads: Annotated[int, Field(ge=1, description="channels of an attention head")] = 64,
        sliding_window: Annotated[Window | None, Field(description="of scales that say none; null: chunks")] = None,
        differential: Annotated[bool, Field(description="differential attention")] = True,
        ff_mult: Annotated[float, Field(gt=0, description="width of the feed-forwards, in widths of a layer")] = 2,
        dyt: Annotated[bool, Field(description="dynamic tanh for norms; else RMS norms")] = False,
        checkpointing: Annotated[bool, Field(description="recompute activations in the backward pass")] = True,
        loss_type: Runtime[LossType] = "lsgan",
    ) -> None:
        shape = (hidden_dim, depth, dim_heads, sliding_window, differential, ff_mult, dyt, checkpointing, loss_type)
        super().__init__(loss_type, partial(MultiScaleTransformerDiscriminator, channels, heads, *shape))
        chosen: Sequence[ScaleOptions | Mapping[str, Any]] = heads or _SCALES
        scales = [as_record(ScaleOptions, head, f"heads[{index}]") for index, head in enumerate(chosen)]
        self.head_names = [scale.name or f"scale_{index}" for index, scale in enumerate(scales)]
        self.head_strides = [scale.stride for scale in scales]
        widths = [scale.hidden_dim or hidden_dim for scale in scales]
        self.sub_heads = nn.ModuleList(
            TransformerResamplingBlock(
                channels,
                width,
                scale.stride,
                scale.sliding_window or sliding_window,
                transformer_depth=scale.depth or depth,
                dim_heads=scale.dim_heads or dim_heads,
                differential=differential if scale.differential is None else scale.differential,
                checkpointing=checkpointing,
                dyt=dyt if scale.dyt is None else scale.dyt,
                ff_mult=scale.ff_mult or ff_mult,
            )
            for scale, width in zip(scales, widths)
        )
        self.score_projs = nn.ModuleList(nn.Sequential(RMSNorm(width), nn.Linear(width, 1)) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [project(head(x).mT).mT for head, project in zip(self.sub_heads, self.score_projs)]

    def loss(self, reals: Tensor, fakes: Tensor, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Return the losses of the critic and of the generator, averaged over the scales."""
        game = {"lsgan": LEAST_SQUARES, "relativistic": RELATIVISTIC}[self.loss_type]
        pairs = list(zip(self(reals), self(fakes)))
        return {
            "loss_dis": mean(game.critic(*pair) for pair in pairs),
            "loss_adv": mean(game.generator(*pair) for pair in pairs),
        }


@dataclass(frozen=True)
class ConvNeXtOptions:
    """Options of every ConvNeXt block."""

    kernel_size: Annotated[int, Field(ge=1)] = 7
    mult: Annotated[int, Field(ge=1, description="widening inside the block")] = 4
    glu: Annotated[bool, Field(description="gate the inner channels")] = False


class ConvNeXtBlock(nn.Module):
    """Residual: a convolution per channel, then a pointwise network that starts at zero."""

    def __init__(self, dim: int, kernel_size: int = 7, mult: int = 4, glu: bool = False) -> None:
        super().__init__()
        inner = dim * mult
        self.glu = glu
        self.dw_conv = WNConv1d(dim, dim, kernel_size=kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj_up = WNConv1d(dim, inner * 2 if self.glu else inner, kernel_size=1)
        self.act = nn.SiLU() if self.glu else nn.GELU()
        self.proj_down = WNConv1d(inner, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.proj_up(self.dw_conv(x))
        if self.glu:
            hidden, gate = hidden.chunk(2, dim=1)
            hidden = hidden * gate.sigmoid()
        out: Tensor = x + self.proj_down(self.act(hidden))
        return out


class ConvNeXtStage(nn.Module):
    """Blocks at one rate, then a strided convolution to the next."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, blocks: int, options: ConvNeXtOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ConvNeXtBlock(in_channels, **vars(options)) for _ in range(blocks)])
        self.downsample = WNConv1d(
            in_channels, out_channels, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.downsample(x)
        return out


class ConvNeXtBackbone(nn.Module):
    """(b, c, n) -> (b, latent_dim, about n / product of strides)"""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        latent_dim: int,
        c_mults: Sequence[int],
        strides: Sequence[int],
        num_blocks: Sequence[int],
        conv_args: ConvNeXtOptions,
    ) -> None:
        super().__init__()
        widths = [channels * mult for mult in (1, *c_mults)]
        self.proj_in = WNConv1d(in_channels, widths[0], kernel_size=7, padding=3)
        stages = [
            ConvNeXtStage(width, wider, stride, blocks, conv_args)
            for width, wider, stride, blocks in zip(widths, widths[1:], strides, num_blocks)
        ]
        self.layers = nn.Sequential(*stages, WNConv1d(widths[-1], latent_dim, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.proj_in(x))
        return out


@register("discriminator_head", "convnext", ignored=("loss_type",))
class ConvNeXtDiscriminator(ScoringHead):
    """A ConvNeXt encoder whose one output channel is the score."""

    def __init__(
        self,
        loss_type: Runtime[LossType] = "lsgan",
        channels: Annotated[int, Field(ge=1, description="channels of the first stage")] = 128,
        c_mults: Annotated[Sequence[int], Field(min_length=1, description="width of each stage")] = (1, 2, 4, 8),
        strides: Annotated[Sequence[int], Field(min_length=1, description="stride of each stage")] = (2, 4, 8, 8),
        num_blocks: Annotated[Sequence[int] | None, Field(description="blocks of each stage; 3 of each")] = None,
        conv_args: Annotated[
            ConvNeXtOptions | Mapping[str, Any], Key(type=ConvNeXtOptions), Field(description="options of every block")
        ] = ConvNeXtOptions(),
        latent_dim: Literal[1] = 1,
        *,
        in_channels: Runtime[int],
    ) -> None:
        shape = (channels, c_mults, strides, num_blocks, conv_args, latent_dim)
        super().__init__(loss_type, partial(ConvNeXtDiscriminator, loss_type, *shape, in_channels=in_channels))
        blocks = num_blocks or (3,) * len(c_mults)
        options = as_record(ConvNeXtOptions, conv_args, "conv_args")
        self.encoder = ConvNeXtBackbone(in_channels, channels, latent_dim, c_mults, strides, blocks, options)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x)
        return out
