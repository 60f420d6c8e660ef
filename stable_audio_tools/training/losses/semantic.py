"""Published import path of the distances of features and of mel spectrograms."""

from stable_audio_tools.models.autoencoders.preprocessing import fold_channels_into_batch
from stable_audio_tools.training.losses.features import HubertLoss
from stable_audio_tools.training.losses.mel import MelSpectrogramLoss

__all__ = ["HubertLoss", "MelSpectrogramLoss", "fold_channels_into_batch"]
