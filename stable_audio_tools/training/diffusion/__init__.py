"""Training of diffusion models: conditional (with inpainting), unconditional, and diffusion autoencoders."""

from stable_audio_tools.training.diffusion.conditional import (
    DiffusionCondInpaintTrainingWrapper,
    DiffusionCondTrainingWrapper,
)
from stable_audio_tools.training.diffusion.decoder import DiffusionAutoencoderTrainingWrapper
from stable_audio_tools.training.diffusion.demos import (
    DiffusionAutoencoderDemoCallback,
    DiffusionCondDemoCallback,
    DiffusionCondInpaintDemoCallback,
    DiffusionUncondDemoCallback,
)
from stable_audio_tools.training.diffusion.unconditional import DiffusionUncondTrainingWrapper

__all__ = [
    "DiffusionAutoencoderDemoCallback",
    "DiffusionAutoencoderTrainingWrapper",
    "DiffusionCondDemoCallback",
    "DiffusionCondInpaintDemoCallback",
    "DiffusionCondInpaintTrainingWrapper",
    "DiffusionCondTrainingWrapper",
    "DiffusionUncondDemoCallback",
    "DiffusionUncondTrainingWrapper",
]
