"""Published import path of small helpers for audio."""

from stable_audio_tools.data.transforms import float_to_int16_audio, is_silence

__all__ = ["float_to_int16_audio", "is_silence"]
