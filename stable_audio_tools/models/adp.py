"""Published import path of the attention U-Net of audio-diffusion-pytorch."""

from typing import Any, Literal

from stable_audio_tools.models.conditioners.numbers import NumberEmbedder
from stable_audio_tools.models.diffusion.unet1d.blocks import Patcher, Unpatcher
from stable_audio_tools.models.diffusion.unet1d.embeddings import FixedEmbedding
from stable_audio_tools.models.diffusion.unet1d.unet import UNet1d
from stable_audio_tools.models.diffusion.unet1d.wrappers import UNetCFG1d

__all__ = [
    "FixedEmbedding",
    "NumberEmbedder",
    "Patcher",
    "UNet1d",
    "UNetCFG1d",
    "Unpatcher",
    "XUNet1d",
]


def XUNet1d(type: Literal["base", "cfg"] = "base", **options: Any) -> UNet1d:
    """Build the plain U-Net, or the one with classifier-free guidance."""
    if type not in ("base", "cfg"):
        raise ValueError(f"no kind of U-Net named {type!r}; allowed: base, cfg")
    return UNet1d(**options) if type == "base" else UNetCFG1d(**options)
