"""Diffusion models: backbones, guidance, and the wrappers that join them with conditioners and pretransforms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.models.diffusion.conditioned import (
        ConditionedDiffusionModel,
        ConditionedDiffusionModelWrapper,
        DiTWrapper,
        create_diffusion_cond_from_config,
    )
    from stable_audio_tools.models.diffusion.dance import DAU1DCondWrapper, DiffusionAttnUnet1D
    from stable_audio_tools.models.diffusion.distribution_shift import DistributionShift
    from stable_audio_tools.models.diffusion.unconditional import (
        DiffusionModel,
        DiffusionModelWrapper,
        DiTUncondWrapper,
        create_diffusion_uncond_from_config,
    )
    from stable_audio_tools.models.diffusion.unet1d.wrappers import (
        UNet1DCondWrapper,
        UNet1DUncondWrapper,
        UNetCFG1DWrapper,
    )

# Resolved when asked for: the transformer in models/dit.py uses this package's guidance, and is used by its wrappers.
_HOMES = {
    "conditioned": (
        "ConditionedDiffusionModel",
        "ConditionedDiffusionModelWrapper",
        "DiTWrapper",
        "create_diffusion_cond_from_config",
    ),
    "unconditional": (
        "DiffusionModel",
        "DiffusionModelWrapper",
        "DiTUncondWrapper",
        "create_diffusion_uncond_from_config",
    ),
    "distribution_shift": ("DistributionShift",),
    "dance": ("DAU1DCondWrapper", "DiffusionAttnUnet1D"),
    "unet1d.wrappers": ("UNet1DCondWrapper", "UNet1DUncondWrapper", "UNetCFG1DWrapper"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ConditionedDiffusionModel",
    "ConditionedDiffusionModelWrapper",
    "DAU1DCondWrapper",
    "DiTUncondWrapper",
    "DiTWrapper",
    "DiffusionAttnUnet1D",
    "DiffusionModel",
    "DiffusionModelWrapper",
    "DistributionShift",
    "UNet1DCondWrapper",
    "UNet1DUncondWrapper",
    "UNetCFG1DWrapper",
    "create_diffusion_cond_from_config",
    "create_diffusion_uncond_from_config",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
