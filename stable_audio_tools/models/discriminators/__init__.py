"""Critics for adversarial training of autoencoders."""

from stable_audio_tools.models.discriminators.bigvgan import BigVGANDiscriminator
from stable_audio_tools.models.discriminators.dac import DACGANLoss
from stable_audio_tools.models.discriminators.encodec import EncodecDiscriminator
from stable_audio_tools.models.discriminators.hil import HILDiscriminator
from stable_audio_tools.models.discriminators.latent import LatentAudioCritic, LatentJEPA
from stable_audio_tools.models.discriminators.losses import get_hinge_losses
from stable_audio_tools.models.discriminators.oobleck import OobleckDiscriminator
from stable_audio_tools.models.discriminators.transformer import MultiTransformerDiscriminator

__all__ = [
    "BigVGANDiscriminator",
    "DACGANLoss",
    "EncodecDiscriminator",
    "HILDiscriminator",
    "LatentAudioCritic",
    "LatentJEPA",
    "MultiTransformerDiscriminator",
    "OobleckDiscriminator",
    "get_hinge_losses",
]
