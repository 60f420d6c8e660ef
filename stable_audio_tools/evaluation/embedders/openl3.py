"""OpenL3 (Cramer et al. 2019), through the package of that name."""

import hashlib
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.core.packages import require
from stable_audio_tools.evaluation.embedders.base import Embedder, HopSeconds, windows_of
from stable_audio_tools.evaluation.windows import fill_up


@register("embedder", "openl3")
class Openl3Embedder(Embedder):
    """OpenL3: a vector per second of music or of environmental sound (needs openl3, and runs on TensorFlow)."""

    def __init__(
        self,
        content_type: Annotated[Literal["music", "env"], Field(description="what it was trained on")] = "music",
        input_repr: Annotated[Literal["linear", "mel128", "mel256"], Field(description="its spectrogram")] = "mel256",
        embedding_size: Annotated[Literal[512, 6144], Field(description="width of the vectors")] = 512,
        hop_seconds: HopSeconds = None,
    ) -> None:
        settings = {"content_type": content_type, "input_repr": input_repr, "embedding_size": embedding_size}
        super().__init__(48000, windows_of(1.0, hop_seconds), settings, "openl3")

    @cached_property
    def network(self) -> Any:
        return require("openl3").models.load_audio_embedding_model(**self.settings)

    @cached_property
    def weights(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for array in self.network.get_weights():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def embed(self, audio: Tensor) -> Tensor:
        clips = list(fill_up(audio, self.sample_rate).cpu().numpy())
        found, _ = require("openl3").get_audio_embedding(
            clips, self.sample_rate, model=self.network, center=False, hop_size=1.0, verbose=False
        )
        return torch.stack([torch.from_numpy(np.asarray(vectors[:1])) for vectors in found])
