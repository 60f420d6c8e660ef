"""The published import path of the clip transforms and of lengths."""

from stable_audio_tools.data.transforms import (
    Mono,
    PadCrop,
    PadCrop_Normalized_T,
    PhaseFlipper,
    Stereo,
    VolumeNorm,
    compute_effective_seq_len_from_conditioning,
    create_padding_mask_from_lengths,
    strip_trailing_silence,
)

__all__ = [
    "Mono",
    "PadCrop",
    "PadCrop_Normalized_T",
    "PhaseFlipper",
    "Stereo",
    "VolumeNorm",
    "compute_effective_seq_len_from_conditioning",
    "create_padding_mask_from_lengths",
    "strip_trailing_silence",
]
