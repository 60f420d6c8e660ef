"""Vocoders: mel spectrograms to audio, under `{"vocoder": {"type": ...}}`."""

from stable_audio_tools.mel.vocoders.base import Vocoder
from stable_audio_tools.mel.vocoders.bigvgan import BigVGANVocoder
from stable_audio_tools.mel.vocoders.griffin_lim import GriffinLimVocoder, find_phases

__all__ = ["BigVGANVocoder", "GriffinLimVocoder", "Vocoder", "find_phases"]
