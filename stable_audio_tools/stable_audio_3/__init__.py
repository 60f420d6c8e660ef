"""The names of the stable-audio-3 package, so that its programs run with the import changed."""

from stable_audio_tools.stable_audio_3.model import AutoencoderModel, StableAudioModel

__all__ = ["AutoencoderModel", "StableAudioModel"]
