"""Published import path of the heads of ARC post-training."""

from torch import Tensor

from stable_audio_tools.models.discriminators.arc_heads import (
    ConvDiscriminator,
    ConvNeXtDiscriminator,
    DilatedConvDiscriminator,
    MultiScaleTransformerDiscriminator,
    ResidualDilatedBlock,
)
from stable_audio_tools.models.discriminators.arc_heads import TransformerHead as TransformerDiscriminator
from stable_audio_tools.models.discriminators.losses import RELATIVISTIC

__all__ = [
    "ConvDiscriminator",
    "ConvNeXtDiscriminator",
    "DilatedConvDiscriminator",
    "MultiScaleTransformerDiscriminator",
    "ResidualDilatedBlock",
    "TransformerDiscriminator",
    "get_relativistic_losses",
]


def get_relativistic_losses(score_real: Tensor, score_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of the discriminator and of the generator."""
    return RELATIVISTIC.critic(score_real, score_fake), RELATIVISTIC.generator(score_real, score_fake)
