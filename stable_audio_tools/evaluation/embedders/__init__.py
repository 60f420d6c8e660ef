"""Embedders of audio: `{"type": "logmel"}`, `{"type": "clap", "config": {"name": "laion/clap-htsat-fused"}}`, ..."""

from stable_audio_tools.evaluation.embedders.base import Embedder, Frames, TextEmbedder, mean_vector, require_texts
from stable_audio_tools.evaluation.embedders.presets import create_embedder

__all__ = ["Embedder", "Frames", "TextEmbedder", "create_embedder", "mean_vector", "require_texts"]
