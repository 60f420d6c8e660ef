"""Critics for adversarial training of autoencoders."""

from stable_audio_tools.models.discriminators.bigvgan import BigVGANDiscriminator
from stable_audio_tools.models.discriminators.dac import DACGANLoss
from stable_audio_tools.models.discriminators.encodec import EncodecDiscriminator
from stable_audio_tools.models.discriminators.losses import get_hinge_losses
from stable_audio_tools.models.discriminators.oobleck import OobleckDiscriminator

__all__ = [
    "BigVGANDiscriminator",
    "DACGANLoss",
    "EncodecDiscriminator",
    "OobleckDiscriminator",
    "get_hinge_losses",
]
