"""Published import path of the backbones of language models."""

from stable_audio_tools.models.lm.backbone import AudioLMBackbone, ContinuousTransformerAudioLMBackbone

__all__ = ["AudioLMBackbone", "ContinuousTransformerAudioLMBackbone"]
