"""Vocoders: mel spectrograms to audio, under `{"vocoder": {"type": ...}}`."""

from stable_audio_tools.mel.vocoders.base import Vocoder
from stable_audio_tools.mel.vocoders.griffin_lim import GriffinLimVocoder, find_phases

__all__ = ["GriffinLimVocoder", "Vocoder", "find_phases"]
