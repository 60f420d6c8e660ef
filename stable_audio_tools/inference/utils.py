"""Published import path."""

from stable_audio_tools.inference.generation.audio import prepare_audio, set_audio_channels

__all__ = ["prepare_audio", "set_audio_channels"]
