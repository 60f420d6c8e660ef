"""From a request to audio, for every type of model. The published import path of the generate functions.

They are fetched when they are first used, so that `request` can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.inference.generation.audio import build_mask
    from stable_audio_tools.inference.generation.diffusion import (
        generate_diffusion_cond,
        generate_diffusion_cond_inpaint,
        generate_diffusion_uncond,
    )

__all__ = ["build_mask", "generate_diffusion_cond", "generate_diffusion_cond_inpaint", "generate_diffusion_uncond"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'audio' if name == 'build_mask' else 'diffusion'}"), name)
