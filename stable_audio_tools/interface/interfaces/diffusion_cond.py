"""Published import path of the page of conditional diffusion models."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.gradio import create_app

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["create_diffusion_cond_ui"]


def create_diffusion_cond_ui(
    model_config: Mapping[str, Any], in_model: nn.Module, in_model_half: bool = False, gradio_title: str = ""
) -> "Blocks":
    """Return the app of a loaded conditional diffusion model, on the device of its weights."""
    device = next(in_model.parameters()).device
    precision = "float16" if in_model_half else "float32"
    return create_app(AudioModel(in_model, model_config, device, precision), gradio_title)
