"""Published import path of the wavelet transform."""

from stable_audio_tools.models.pretransforms.wavelet import WaveletDecode1d, WaveletEncode1d

__all__ = ["WaveletDecode1d", "WaveletEncode1d"]
