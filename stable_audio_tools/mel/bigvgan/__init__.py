"""BigVGAN (Lee et al. 2023), versions 1 and 2, for inference: its network, and its published configs and weights."""

from stable_audio_tools.mel.bigvgan.config import PUBLISHED, BigVGANConfig
from stable_audio_tools.mel.bigvgan.network import BigVGAN
from stable_audio_tools.mel.bigvgan.weights import load_bigvgan, problem, read_config

__all__ = ["PUBLISHED", "BigVGAN", "BigVGANConfig", "load_bigvgan", "problem", "read_config"]
