"""Classifiers of sounds, whose scores of classes give a KL divergence between a sound and its reference."""

from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.packages import require
from stable_audio_tools.evaluation.embedders.base import Embedder, HopSeconds, WindowSeconds, windows_of
from stable_audio_tools.models.conditioners.hub import FEATURE_FILES, WEIGHT_FILES, in_dtype, load_pretrained

_PASST_CLASSES = 527


@register("embedder", "classifier")
class ClassifierEmbedder(Embedder):
    """Scores of the classes that an audio classifier of transformers knows, such as AST's of AudioSet."""

    gives_logits = True

    def __init__(
        self,
        name: Annotated[
            str, Field(description="hub name or folder of the classifier")
        ] = "MIT/ast-finetuned-audioset-10-10-0.4593",
        sample_rate: Annotated[int, Field(gt=0, description="rate of the model, in Hz")] = 16000,
        window_seconds: WindowSeconds = 10.0,
        hop_seconds: HopSeconds = None,
    ) -> None:
        super().__init__(sample_rate, windows_of(window_seconds, hop_seconds), {}, name)
        self.name = name

    def load(self) -> nn.Module:
        from transformers import AutoModelForAudioClassification

        model: nn.Module = load_pretrained(
            AutoModelForAudioClassification, self.name, WEIGHT_FILES, "classifier.name", **in_dtype(torch.float32)
        )
        return model

    @cached_property
    def features(self) -> Any:
        """What the model takes, out of samples; it refuses another rate than its own."""
        from transformers import AutoFeatureExtractor

        return load_pretrained(AutoFeatureExtractor, self.name, FEATURE_FILES, "classifier.name")

    def embed(self, audio: Tensor) -> Tensor:
        clips = list(audio.cpu().numpy())
        inputs = self.features(clips, sampling_rate=self.sample_rate, return_tensors="pt").to(self.device)
        logits: Tensor = self.network(**inputs).logits
        return logits[:, None]


@register("embedder", "passt")
class PasstEmbedder(Embedder):
    """PaSST (Koutini et al. 2022) of hear21passt: its features, or its scores of AudioSet's classes."""

    def __init__(
        self,
        output: Annotated[Literal["features", "logits"], Field(description="what is taken")] = "features",
        window_seconds: Annotated[float, Field(gt=0, le=10, description="length of a window")] = 10.0,
        hop_seconds: HopSeconds = None,
    ) -> None:
        super().__init__(32000, windows_of(window_seconds, hop_seconds), {"output": output}, "hear21passt")
        self.output = output
        self.gives_logits = output == "logits"

    def load(self) -> nn.Module:
        model: nn.Module = require("hear21passt.base").load_model()
        return model

    def embed(self, audio: Tensor) -> Tensor:
        both: Tensor = self.network.get_scene_embeddings(audio)  # logits, then features
        chosen = both[:, :_PASST_CLASSES] if self.gives_logits else both[:, _PASST_CLASSES:]
        return chosen[:, None]
