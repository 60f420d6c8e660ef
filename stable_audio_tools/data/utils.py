"""The published import path of the clip transforms."""

from stable_audio_tools.data.transforms import Mono, PadCrop, PadCrop_Normalized_T, PhaseFlipper, Stereo, VolumeNorm

__all__ = ["Mono", "PadCrop", "PadCrop_Normalized_T", "PhaseFlipper", "Stereo", "VolumeNorm"]
