"""The import path of the clip transforms in friendly-stable-audio-tools."""

from stable_audio_tools.data.transforms import Mono, PadCrop_Normalized_T, Stereo

__all__ = ["Mono", "PadCrop_Normalized_T", "Stereo"]
