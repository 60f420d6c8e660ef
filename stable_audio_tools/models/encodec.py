"""Published import path of the discriminators over complex spectrograms."""

from torch import Tensor

from stable_audio_tools.models.discriminators.encodec import (
    MultiScaleSTFTDiscriminator,
    NormConv2d,
)
from stable_audio_tools.models.discriminators.encodec import STFTDiscriminator as DiscriminatorSTFT
from stable_audio_tools.models.discriminators.encodec import half_kernel as get_2d_padding
from stable_audio_tools.models.transformer.published import checkpoint

__all__ = [
    "DiscriminatorOutput",
    "DiscriminatorSTFT",
    "FeatureMapType",
    "LogitsType",
    "MultiScaleSTFTDiscriminator",
    "NormConv2d",
    "checkpoint",
    "get_2d_padding",
]

FeatureMapType = list[Tensor]
LogitsType = Tensor
DiscriminatorOutput = tuple[list[LogitsType], list[FeatureMapType]]
