"""Published import path of the discriminators over complex spectrograms."""

from stable_audio_tools.models.discriminators.encodec import (
    MultiScaleSTFTDiscriminator,
    NormConv2d,
)
from stable_audio_tools.models.discriminators.encodec import STFTDiscriminator as DiscriminatorSTFT
from stable_audio_tools.models.discriminators.encodec import half_kernel as get_2d_padding

__all__ = ["DiscriminatorSTFT", "MultiScaleSTFTDiscriminator", "NormConv2d", "get_2d_padding"]
