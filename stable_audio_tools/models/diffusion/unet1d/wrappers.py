"""The 1-D U-Nets by their JSON tags, with their facts and checks: `adp_1d`, `adp_cfg_1d` and `adp_uncond_1d`."""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.diffusion.backbones import halve_parameters, takes_options_of
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModel
from stable_audio_tools.models.diffusion.guidance import Guidance, on_host
from stable_audio_tools.models.diffusion.objectives import Objective, parse_objective
from stable_audio_tools.models.diffusion.unconditional import DiffusionModel
from stable_audio_tools.models.diffusion.unet1d.embeddings import FixedEmbedding, time_embedding
from stable_audio_tools.models.diffusion.unet1d.unet import Positive, UNet1d
from stable_audio_tools.models.precision import weight_dtype

_TRANSFORMER_GROUPS = 32


def describe(config: SimpleNamespace) -> dict[str, object]:
    """Return facts of a config, for checks against its surroundings."""
    hop = (config.stft_hop_length or 256) if config.use_stft else 1
    return {
        "io_channels": config.in_channels,
        "cond_token_dim": getattr(config, "context_embedding_features", None) or 0,
        "global_cond_dim": config.context_features or 0,
        "input_concat_dim": sum(config.context_channels or ()),
        "prepend_cond_dim": 0,
        "length_multiple": config.patch_size * math.prod(config.factors) * hop,
    }


def check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Yield every mistake of a config; only the lengths of its lists where these are wrong."""
    wrong = list(_check_lengths(config))
    yield from wrong
    if not wrong:
        yield from _check_widths(config)
        yield from _check_attention(config)
        yield from _check_context(config)
    yield from _check_spectral(config)


def _check_lengths(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    levels = len(config.multipliers) - 1
    for key in ("factors", "num_blocks"):
        count = len(getattr(config, key))
        if count != levels:
            yield key, f"has {count} entries, multipliers {levels + 1}: give one less than multipliers, {levels}"
    if len(config.attentions) < levels:
        yield (
            "attentions",
            f"has {len(config.attentions)} entries, multipliers {levels + 1}: give {levels + 1}, "
            "the last for the middle",
        )


def _check_widths(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    groups = config.resnet_groups
    for index, width in list(enumerate(widths))[1:]:
        if width % groups:
            yield f"multipliers[{index}]", f"makes {width} channels, no multiple of resnet_groups, {groups}"
    for level, extra in enumerate(list(config.context_channels or ())[1 : len(widths)], 1):
        if extra % groups:
            valid = math.ceil(extra / groups) * groups
            yield f"context_channels[{level}]", f"is {extra}, no multiple of resnet_groups, {groups}: use {valid}"
    if widths[0] % config.patch_size:
        yield "patch_size", f"is {config.patch_size}, and must divide channels x multipliers[0] = {widths[0]}"
    if config.use_context_time and config.channels % 2:
        yield "channels", f"is {config.channels}; the embedding of time needs an even number: use {config.channels + 1}"


def _check_attention(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    levels = len(config.factors)
    attended = [(f"attentions[{level}]", level + 1) for level in range(levels) if config.attentions[level]]
    if config.attentions[-1]:
        attended.append((f"attentions[{len(config.attentions) - 1}]", levels))
    for key, level in dict(attended).items():
        width = config.channels * config.multipliers[level]
        if width % _TRANSFORMER_GROUPS:
            valid = math.ceil(width / _TRANSFORMER_GROUPS) * _TRANSFORMER_GROUPS
            yield key, f"asks for attention at {width} channels, which must be a multiple of 32, such as {valid}"
        if config.attention_features is None and config.attention_heads and width < config.attention_heads:
            yield "attention_heads", f"is {config.attention_heads}, more than the {width} channels at {key}"
        if config.attention_heads is None and config.attention_features and width < config.attention_features:
            yield "attention_features", f"is {config.attention_features}, more than the {width} channels at {key}"
    if attended and config.attention_heads is None and config.attention_features is None:
        yield "attention_heads", "missing; attentions asks for attention: give attention_heads or attention_features"
    if attended and config.attention_multiplier is None:
        yield "attention_multiplier", "missing; attentions asks for attention, whose feed-forward needs it (often 2)"


def _check_context(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    context = list(config.context_channels or ())
    if len(context) > len(config.multipliers):
        yield "context_channels", f"has {len(context)} entries, multipliers {len(config.multipliers)}: give no more"
    for level, blocks in enumerate(config.num_blocks):
        if blocks == 0 and level + 1 < len(context) and context[level + 1]:
            yield f"num_blocks[{level}]", f"is 0; context_channels[{level + 1}] needs a block to take its channels"


def _check_spectral(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.use_stft:
        if config.stft_num_fft is None:
            yield "stft_num_fft", "missing; use_stft needs it"
        elif (config.stft_window_length or 1) > config.stft_num_fft:
            yield (
                "stft_window_length",
                f"is {config.stft_window_length}, longer than stft_num_fft, {config.stft_num_fft}",
            )
        return
    for key in ("stft_num_fft", "stft_hop_length", "stft_window_length", "stft_length"):
        if getattr(config, key) is not None:
            yield key, "has no effect without use_stft: true"
    for key in ("use_stft_context", "stft_use_complex"):
        if getattr(config, key):
            yield key, "has no effect without use_stft: true"


@takes_options_of(UNet1d)
class UNetCFG1d(UNet1d):
    """A learned sequence, the same for every input, stands for the absent condition."""

    def __init__(
        self,
        *,
        context_embedding_max_length: Annotated[int, Field(ge=1, description="longest condition, in tokens")],
        context_embedding_features: Positive,
        use_xattn_time: Annotated[bool, Field(description="append the noise level as a token")] = False,
        **options: Any,
    ) -> None:
        super().__init__(context_embedding_features=context_embedding_features, **options)
        self.to_time_embedding = (
            time_embedding(options["channels"], context_embedding_features) if use_xattn_time else None
        )
        self.fixed_embedding = FixedEmbedding(
            context_embedding_max_length + int(use_xattn_time), context_embedding_features
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        *,
        features: Tensor | None = None,
        channels_list: Sequence[Tensor] | None = None,
        embedding: Tensor | None = None,
        embedding_mask: Tensor | None = None,
        embedding_scale: float = 1.0,
        embedding_mask_proba: float = 0.0,
        rescale_cfg: bool = False,
        scale_phi: float = 0.4,
        batch_cfg: bool = False,
        negative_embedding: Tensor | None = None,
        negative_embedding_mask: Tensor | None = None,
    ) -> Tensor:
        """As `UNet1d`, with guidance where `embedding_scale` is not 1.

        `batch_cfg` runs both passes as one batch; the numbers are the same. With `rescale_cfg` the deviation over
        channels is brought back to the conditioned one's by the share `scale_phi` (Lin et al. 2023, eq. 15-16).
        `embedding_mask_proba` is the chance that an item loses its condition, for training.
        """
        if embedding is None:
            raise ValueError("this model attends to conditions: name conditioners in cross_attention_cond_ids")
        assert time is not None
        embedding, embedding_mask = self._with_time(embedding, embedding_mask, time)
        null = self.fixed_embedding(embedding)
        if embedding_mask_proba > 0.0:
            dropped = torch.full((len(embedding), 1, 1), embedding_mask_proba, device=embedding.device).bernoulli()
            embedding = torch.where(dropped.bool(), null, embedding)
        if embedding_scale == 1.0:
            return super().forward(
                x,
                time,
                features=features,
                channels_list=channels_list,
                embedding=embedding,
                embedding_mask=embedding_mask,
            )
        unwanted = null
        if negative_embedding is not None:
            unwanted = self._negative(negative_embedding, negative_embedding_mask, time, null)
        passes = self._together if batch_cfg else self._in_turn
        wanted_out, unwanted_out = passes(x, time, features, channels_list, embedding_mask, (embedding, unwanted))
        return Guidance(embedding_scale, rescale=scale_phi if rescale_cfg else 0.0).combine(wanted_out, unwanted_out)

    def _with_time(self, embedding: Tensor, mask: Tensor | None, time: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.to_time_embedding is None:
            return embedding, mask
        token = self.to_time_embedding(time)[:, None]
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return torch.cat([embedding, token], dim=1), mask

    def _negative(self, negative: Tensor, mask: Tensor | None, time: Tensor, null: Tensor) -> Tensor:
        """The negative condition, with the null sequence where it is padding."""
        negative, mask = self._with_time(negative, mask, time)
        if negative.shape != null.shape:
            raise ValueError(
                f"negative condition of {negative.shape[1]} tokens for a condition of {null.shape[1]}: "
                "they must be of one length"
            )
        return negative if mask is None else torch.where(mask.bool()[..., None], negative, null)

    def _together(
        self,
        x: Tensor,
        time: Tensor,
        features: Tensor | None,
        channels_list: Sequence[Tensor] | None,
        mask: Tensor | None,
        embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both passes as one batch of twice the size."""
        out = super().forward(
            torch.cat([x, x]),
            torch.cat([time, time]),
            features=None if features is None else torch.cat([features, features]),
            channels_list=None if channels_list is None else [torch.cat([c, c]) for c in channels_list],
            embedding=torch.cat(embeddings),
            embedding_mask=None if mask is None else torch.cat([mask, mask]),
        )
        wanted, unwanted = out.chunk(2)
        return wanted, unwanted

    def _in_turn(
        self,
        x: Tensor,
        time: Tensor,
        features: Tensor | None,
        channels_list: Sequence[Tensor] | None,
        mask: Tensor | None,
        embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both passes one after the other, in half the memory."""
        wanted, unwanted = (
            UNet1d.forward(
                self,
                x,
                time,
                features=features,
                channels_list=channels_list,
                embedding=embedding,
                embedding_mask=mask,
            )
            for embedding in embeddings
        )
        return wanted, unwanted


_NO_TOKENS = ("context_embedding_features",)  # these nets attend to themselves alone


def _split_context(model: UNet1d, given: Tensor | None) -> list[Tensor] | None:
    """Concatenated conditions as the context of each level that has one."""
    widths = [width for width in model.context_channels if width]
    if given is None or not widths:
        return None
    if given.shape[1] != sum(widths):
        raise ValueError(
            f"input_concat_ids gave {given.shape[1]} channels, context_channels {widths} takes {sum(widths)}"
        )
    return list(given.to(weight_dtype(model)).split(widths, dim=1))


@register("diffusion", "adp_cfg_1d", facts=describe, check=check)
@takes_options_of(UNetCFG1d)
class UNetCFG1DWrapper(ConditionedDiffusionModel):
    """The 1-D U-Net with cross-attention to conditions and guidance: Stable Audio 1."""

    def __init__(self, diffusion_objective: Runtime[Objective | str] = "v", **options: Any) -> None:
        super().__init__(supports_cross_attention=True, supports_global_cond=True, supports_input_concat=True)
        self.objective = parse_objective(diffusion_objective)
        self.model = UNetCFG1d(**options)
        self.io_channels: int = options["in_channels"]
        halve_parameters(self.model)

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
        batch_cfg: bool = False,
        rescale_cfg: bool = False,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        scale_phi: float = 0.4,
        negative_cross_attn_cond: Tensor | None = None,
        negative_cross_attn_mask: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """x (b, c, n), t (b,) from 0 at data to 1 at noise -> (b, c, n)

        Guidance applies at noise levels within `cfg_interval`; `scale_phi` counts where `rescale_cfg` is true.
        Prepended conditions and the negatives of the others have no place here.
        """
        dtype = weight_dtype(self.model)
        within = Guidance(cfg_scale, cfg_interval).covers(self.objective.noise_level(on_host(t)))
        out: Tensor = self.model(
            x.to(dtype),
            t,
            embedding=_cast(cross_attn_cond, dtype),
            embedding_mask=cross_attn_mask,
            features=_cast(global_cond, dtype),
            channels_list=_split_context(self.model, input_concat_cond),
            embedding_scale=cfg_scale if within else 1.0,
            embedding_mask_proba=cfg_dropout_prob,
            batch_cfg=batch_cfg,
            rescale_cfg=rescale_cfg,
            scale_phi=scale_phi,
            negative_embedding=_cast(negative_cross_attn_cond, dtype),
            negative_embedding_mask=negative_cross_attn_mask,
        )
        return out


@register("diffusion", "adp_1d", ignored=_NO_TOKENS, facts=describe, check=check)
@register("diffusion_decoder", "adp_1d", ignored=_NO_TOKENS, facts=describe, check=check)
@takes_options_of(UNet1d, without=("context_embedding_features", "exclude_masked_tokens"))
class UNet1DCondWrapper(ConditionedDiffusionModel):
    """The 1-D U-Net with global and concatenated conditions, which leave nothing to guide."""

    def __init__(self, **options: Any) -> None:
        super().__init__(supports_global_cond=True, supports_input_concat=True)
        self.model = UNet1d(**options)
        self.io_channels: int = options["in_channels"]
        halve_parameters(self.model)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        *_: object,
        **__: object,
    ) -> Tensor:
        """x (b, c, n), t (b,) from 0 at data to 1 at noise -> (b, c, n); arguments of guidance have no effect"""
        dtype = weight_dtype(self.model)
        context = _split_context(self.model, input_concat_cond)
        out: Tensor = self.model(x.to(dtype), t, features=_cast(global_cond, dtype), channels_list=context)
        return out


@register("unconditional", "adp_uncond_1d", ignored=_NO_TOKENS, facts=describe, check=check)
@takes_options_of(UNet1d, without=("context_embedding_features", "exclude_masked_tokens"))
class UNet1DUncondWrapper(DiffusionModel):
    """The 1-D U-Net without conditions."""

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="channels of the audio or latents")],
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = UNet1d(in_channels=in_channels, **options)
        self.io_channels = in_channels
        halve_parameters(self.model)

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        """x (b, c, n), t (b,) from 0 at data to 1 at noise -> (b, c, n); `options` are those of `UNet1d`"""
        out: Tensor = self.model(x.to(weight_dtype(self.model)), t, **options)
        return out


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
