"""The 2-D U-Nets of diffusers as backbones. Spectrograms are images: bands from bottom to top, frames left to right.

Outside, bands are channels: (b, channels * bands, frames). Inside it is (b, channels, bands, frames), filled up at the
top and on the right to what the levels can halve, so any number of bands and frames will do.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.packages import require
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModel
from stable_audio_tools.models.diffusion.guidance import Conditions, Guidance
from stable_audio_tools.models.diffusion.objectives import Objective, parse_objective
from stable_audio_tools.models.diffusion.unconditional import DiffusionModel

Preset = Literal["tiny", "small", "large"]


class Levels(NamedTuple):
    """Channels of the levels, the finest first, and which of them attend."""

    channels: tuple[int, ...]
    attention: tuple[int, ...]


PRESETS: dict[Preset, Levels] = {
    "tiny": Levels((256, 256, 512, 512), (2,)),
    "small": Levels((128, 128, 256, 256, 512, 512), (4,)),
    "large": Levels((128, 128, 256, 256, 512, 512, 1024), (5,)),
}
CONDITIONED_PRESETS: dict[Preset, Levels] = {
    "tiny": Levels((256, 256, 512, 512), (2,)),
    "small": Levels((128, 256, 256, 256, 512, 512), (4,)),
    "large": Levels((128, 256, 256, 512, 512, 512, 1024), (5,)),
}

_IOChannels = Annotated[int, Field(ge=1, description="channels of the latents: image channels times bands")]
_ImageChannels = Annotated[int, Field(ge=1, description="channels of the image or of a 2-D autoencoder's latents")]
_Preset = Annotated[Preset | None, Field(description="sizes by name; null: taken from `block_out_channels`")]
_Channels = Annotated[
    list[int] | None, Field(min_length=1, description="channels of each level, the finest first; null: as the preset")
]
_Attention = Annotated[
    list[int] | None, Field(description="numbers of the levels that attend, from 0; null: as the preset, or none")
]
_Layers = Annotated[int, Field(ge=1, description="residual blocks of a level")]
_Groups = Annotated[int, Field(ge=1, description="groups of the normalisation")]
_Dropout = Annotated[float, Field(ge=0, lt=1, description="dropout inside the residual blocks")]


def _levels_of(
    preset: Preset | None,
    block_out_channels: list[int] | None,
    attention_levels: list[int] | None,
    presets: dict[Preset, Levels],
) -> Levels:
    if block_out_channels is None:
        channels, attention = presets[preset or "small"]
    else:
        channels, attention = tuple(block_out_channels), ()
    return Levels(channels, attention if attention_levels is None else tuple(attention_levels))


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.io_channels % config.image_channels:
        yield (
            "io_channels",
            f"is {config.io_channels}; it must be a multiple of image_channels, {config.image_channels}",
        )
    if config.preset is not None and config.block_out_channels is not None:
        yield "preset", f"is {config.preset!r}, and block_out_channels is given too; leave one of them out"
        return
    channels, attention = _levels_of(config.preset, config.block_out_channels, config.attention_levels, PRESETS)
    for index, count in enumerate(channels):
        if count < 1 or count % config.norm_groups:
            yield (
                f"block_out_channels[{index}]",
                f"is {count}; it must be a multiple of norm_groups, {config.norm_groups}",
            )
    for level in attention:
        if not 0 <= level < len(channels):
            yield "attention_levels", f"names level {level}, and there are 0 to {len(channels) - 1}"


def _describe(config: SimpleNamespace) -> dict[str, object]:
    widths = {key: getattr(config, key) for key in ("cond_token_dim", "global_cond_dim") if hasattr(config, key)}
    return {"io_channels": config.io_channels, "length_multiple": 1, **widths}


def block_types(levels: Levels, plain: str, attending: str) -> tuple[str, ...]:
    """diffusers' names of the blocks going down; `Down` is `Up` in those going back."""
    return tuple(attending if index in levels.attention else plain for index in range(len(levels.channels)))


def _network(kind: str, levels: Levels, attending: str, image_channels: int, **options: Any) -> Any:
    """A U-Net of diffusers, as many channels out as in."""
    down = block_types(levels, "DownBlock2D", attending)
    return getattr(require("diffusers", extra="mel"), kind)(
        sample_size=None,
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=levels.channels,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        **options,
    )


def as_image(x: Tensor, io_channels: int, image_channels: int, multiple: int) -> Tensor:
    """(b, c * bands, t) -> (b, c, bands, t), the last band and frame repeated up to multiples."""
    if x.shape[1] != io_channels:
        raise ValueError(
            f"latents have {x.shape[1]} channels, but the io_channels of this U-Net are {io_channels}; give it latents "
            "of as many channels, such as its pretransform returns"
        )
    image = x.unflatten(1, (image_channels, -1))
    bands, frames = image.shape[-2:]
    return F.pad(image, (0, -frames % multiple, 0, -bands % multiple), mode="replicate")


def from_image(image: Tensor, like: Tensor, image_channels: int) -> Tensor:
    """The inverse of `as_image` for something of the shape of `like` (b, c * bands, t)."""
    bands, frames = like.shape[1] // image_channels, like.shape[2]
    return image[..., :bands, :frames].flatten(1, 2)


@register("unconditional", "unet2d", facts=_describe, check=_check)
class UNet2DUncondWrapper(DiffusionModel):
    """A 2-D U-Net over spectrograms or 2-D latents, by diffusers."""

    def __init__(
        self,
        io_channels: _IOChannels,
        image_channels: _ImageChannels = 1,
        preset: _Preset = None,
        block_out_channels: _Channels = None,
        attention_levels: _Attention = None,
        layers_per_block: _Layers = 2,
        attention_head_dim: Annotated[int, Field(ge=1, description="channels of an attention head")] = 8,
        norm_groups: _Groups = 32,
        dropout: _Dropout = 0.0,
        *,
        diffusion_objective: Runtime[Objective | str] = "v",
    ) -> None:
        super().__init__()
        self.io_channels, self.image_channels = io_channels, image_channels
        self.objective = parse_objective(diffusion_objective)
        levels = _levels_of(preset, block_out_channels, attention_levels, PRESETS)
        self.multiple = 2 ** (len(levels.channels) - 1)
        self.unet = _network(
            "UNet2DModel",
            levels,
            "AttnDownBlock2D",
            image_channels,
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_groups,
            dropout=dropout,
        )

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        """x (b, c * bands, n), t (b,) from 0 at data to 1 at noise -> (b, c * bands, n); no options have an effect"""
        image = as_image(x, self.io_channels, self.image_channels, self.multiple).to(self.unet.dtype)
        out: Tensor = self.unet(image, self.objective.position(t)).sample
        return from_image(out, x, self.image_channels)


@register("diffusion", "unet2d_cond", facts=_describe, check=_check)
class UNet2DCondWrapper(ConditionedDiffusionModel):
    """A 2-D U-Net with cross-attention to conditions and guidance, by diffusers."""

    def __init__(
        self,
        io_channels: _IOChannels,
        cond_token_dim: Annotated[int, Field(ge=1, description="width of the conditions of the cross-attention")],
        image_channels: _ImageChannels = 1,
        preset: _Preset = None,
        block_out_channels: _Channels = None,
        attention_levels: _Attention = None,
        global_cond_dim: Annotated[int, Field(ge=0, description="width of the global condition; 0: none")] = 0,
        layers_per_block: _Layers = 2,
        attention_heads: Annotated[int, Field(ge=1, description="heads of an attention")] = 8,
        norm_groups: _Groups = 32,
        dropout: _Dropout = 0.0,
        *,
        diffusion_objective: Runtime[Objective | str] = "v",
    ) -> None:
        super().__init__(supports_cross_attention=True, supports_global_cond=global_cond_dim > 0)
        self.io_channels, self.image_channels = io_channels, image_channels
        self.objective = parse_objective(diffusion_objective)
        levels = _levels_of(preset, block_out_channels, attention_levels, CONDITIONED_PRESETS)
        self.multiple = 2 ** (len(levels.channels) - 1)
        self.unet = _network(
            "UNet2DConditionModel",
            levels,
            "CrossAttnDownBlock2D",
            image_channels,
            layers_per_block=layers_per_block,
            attention_head_dim=attention_heads,  # their name; it is the number of heads
            norm_num_groups=norm_groups,
            dropout=dropout,
            cross_attention_dim=cond_token_dim,
            class_embed_type="projection" if global_cond_dim else None,
            projection_class_embeddings_input_dim=global_cond_dim or None,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        cfg_scale: float = 1.0,
        cfg_dropout_prob: float = 0.0,
        batch_cfg: bool = True,
        rescale_cfg: bool = False,
        scale_phi: float = 0.0,
        negative_cross_attn_cond: Tensor | None = None,
        negative_cross_attn_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """x (b, c * bands, n), t (b,) from 0 at data to 1 at noise -> (b, c * bands, n)

        Without a condition there are zeros in its place, as where it was dropped in training.
        """
        if cross_attn_cond is None:
            cross_attn_cond = x.new_zeros(len(x), 1, self.unet.config.cross_attention_dim)
        given = Conditions(cross_attn_cond, cross_attn_mask, global_embed=global_cond).to(self.unet.dtype)
        if cfg_dropout_prob > 0:
            given = given.dropped(cfg_dropout_prob)
        if cfg_scale == 1.0:
            return self._run(x, t, given)
        guidance = Guidance(cfg_scale, rescale=scale_phi if rescale_cfg else None)
        empty = given.unconditional(negative_cross_attn_cond, negative_cross_attn_mask)
        if batch_cfg:
            both = self._run(torch.cat([x, x]), torch.cat([t, t]), given.joined(empty))
            return guidance.combine(both[: len(x)], both[len(x) :])
        return guidance.combine(self._run(x, t, given), self._run(x, t, empty))

    def _run(self, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        image = as_image(x, self.io_channels, self.image_channels, self.multiple).to(self.unet.dtype)
        out: Tensor = self.unet(
            image,
            self.objective.position(t),
            conditions.cross_attn,
            class_labels=conditions.global_embed,
            encoder_attention_mask=conditions.cross_attn_mask,
        ).sample
        return from_image(out, x, self.image_channels)
