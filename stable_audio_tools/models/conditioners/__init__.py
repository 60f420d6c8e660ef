"""Conditioners: metadata to the tensors that steer a model."""

from stable_audio_tools.models.conditioners.audio import PretransformConditioner, SourceMixConditioner
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    find_condition,
    join_tokens,
    join_vectors,
)
from stable_audio_tools.models.conditioners.clap import CLAPAudioConditioner, CLAPTextConditioner
from stable_audio_tools.models.conditioners.multi import (
    Conditioning,
    MultiConditioner,
    check_conditioning,
    check_ids,
    create_multi_conditioner_from_conditioning_config,
)
from stable_audio_tools.models.conditioners.numbers import IntConditioner, ListConditioner, NumberConditioner
from stable_audio_tools.models.conditioners.text import (
    PhonemeConditioner,
    T5Conditioner,
    TokenizerLUTConditioner,
    WordsConditioner,
)

__all__ = [
    "CLAPAudioConditioner",
    "CLAPTextConditioner",
    "Condition",
    "Conditioner",
    "Conditioning",
    "IntConditioner",
    "ListConditioner",
    "MultiConditioner",
    "NumberConditioner",
    "PhonemeConditioner",
    "PretransformConditioner",
    "SATCLAPAudioConditioner",
    "SATCLAPTextConditioner",
    "SourceMixConditioner",
    "T5Conditioner",
    "TokenizerLUTConditioner",
    "WordsConditioner",
    "check_conditioning",
    "check_ids",
    "create_multi_conditioner_from_conditioning_config",
    "find_condition",
    "join_tokens",
    "join_vectors",
]
