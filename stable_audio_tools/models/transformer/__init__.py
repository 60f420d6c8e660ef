"""Transformer parts with plain arguments; nothing here is registered."""

from stable_audio_tools.models.transformer.attention import Attention
from stable_audio_tools.models.transformer.backends import attention_backend, use_attention_backend
from stable_audio_tools.models.transformer.blocks import ConformerModule, TransformerBlock
from stable_audio_tools.models.transformer.cache import KeyValue, KeyValueCache
from stable_audio_tools.models.transformer.continuous import ContinuousTransformer, TransformerOutput
from stable_audio_tools.models.transformer.feedforward import GLU, FeedForward
from stable_audio_tools.models.transformer.norms import DynamicTanh, LayerNorm, LayerScale, RunningInstanceNorm
from stable_audio_tools.models.transformer.published import (
    apply_rotary_pos_emb,
    checkpoint,
    create_causal_mask,
    or_reduce,
    rotate_half,
)
from stable_audio_tools.models.transformer.rotary import (
    AbsolutePositionalEmbedding,
    Rotary,
    RotaryEmbedding,
    ScaledSinusoidalEmbedding,
)

__all__ = [
    "GLU",
    "AbsolutePositionalEmbedding",
    "Attention",
    "ConformerModule",
    "ContinuousTransformer",
    "DynamicTanh",
    "FeedForward",
    "KeyValue",
    "KeyValueCache",
    "LayerNorm",
    "LayerScale",
    "Rotary",
    "RotaryEmbedding",
    "RunningInstanceNorm",
    "ScaledSinusoidalEmbedding",
    "TransformerBlock",
    "TransformerOutput",
    "apply_rotary_pos_emb",
    "attention_backend",
    "checkpoint",
    "create_causal_mask",
    "or_reduce",
    "rotate_half",
    "use_attention_backend",
]
