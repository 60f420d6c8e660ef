"""The U-Nets as backbones of diffusion models, by the published names."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModel
from stable_audio_tools.models.diffusion.guidance import Guidance
from stable_audio_tools.models.diffusion.initialization import halve_parameters
from stable_audio_tools.models.diffusion.objectives import Objective, parse_objective
from stable_audio_tools.models.diffusion.unconditional import DiffusionModel
from stable_audio_tools.models.diffusion.unet1d.checks import check, describe
from stable_audio_tools.models.diffusion.unet1d.guided import UNetCFG1d
from stable_audio_tools.models.diffusion.unet1d.options import takes_options_of
from stable_audio_tools.models.diffusion.unet1d.unet import UNet1d
from stable_audio_tools.models.precision import weight_dtype

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
        **_: Any,
    ) -> Tensor:
        """x (b, c, n), t (b,) from 0 at data to 1 at noise -> (b, c, n)

        Guidance applies at noise levels within `cfg_interval`; `scale_phi` counts where `rescale_cfg` is true.
        Prepended conditions and the negatives of the others have no place here.
        """
        dtype = weight_dtype(self.model)
        within = Guidance(cfg_scale, cfg_interval).covers(self.objective.noise_level(t))
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
        *_: Any,
        **__: Any,
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
