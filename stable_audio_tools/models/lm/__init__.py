"""Language models over the tokens of a codec."""

from stable_audio_tools.models.lm.backbone import AudioLMBackbone, ContinuousTransformerAudioLMBackbone
from stable_audio_tools.models.lm.language_model import (
    AudioLanguageModel,
    AudioLanguageModelWrapper,
    LMOutput,
    create_audio_lm_from_config,
)

__all__ = [
    "AudioLMBackbone",
    "AudioLanguageModel",
    "AudioLanguageModelWrapper",
    "ContinuousTransformerAudioLMBackbone",
    "LMOutput",
    "create_audio_lm_from_config",
]
