"""Training of autoencoders against spectral, time-domain and adversarial losses."""

from stable_audio_tools.training.autoencoders.demos import AutoencoderDemoCallback
from stable_audio_tools.training.autoencoders.wrapper import AutoencoderTrainingWrapper

__all__ = ["AutoencoderDemoCallback", "AutoencoderTrainingWrapper"]
