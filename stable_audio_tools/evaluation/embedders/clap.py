"""CLAP: sounds and texts in one space."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.evaluation.embedders.base import (
    Frames,
    HopSeconds,
    TextEmbedder,
    WindowSeconds,
    digest_of,
    windows_of,
)
from stable_audio_tools.inference.sampling.exact_math import exact_math
from stable_audio_tools.models.conditioners.clap_towers import (
    TEXT_LENGTH,
    AudioTower,
    TextTower,
    audio_tower_by_name,
    audio_tower_of_checkpoint,
    text_tower_by_name,
    text_tower_of_checkpoint,
)

CLAP_RATE = 48000
LONGEST_WINDOW = 10.0  # seconds; of what is longer, CLAP itself would hear a part drawn at random


def _check_source(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if (config.name is None) == (config.checkpoint is None):
        yield "name", "give one of name (such as 'laion/clap-htsat-fused') and checkpoint (of laion-clap)"
    if config.window_seconds > LONGEST_WINDOW:
        yield "window_seconds", f"CLAP hears {LONGEST_WINDOW:g} s at most, got {config.window_seconds:g}"


@register("embedder", "clap", check=_check_source)
class ClapEmbedder(TextEmbedder):
    """CLAP of transformers by name or folder, or from a checkpoint of laion-clap; unit vectors of sounds and texts."""

    def __init__(
        self,
        name: Annotated[str | None, Field(description="hub name or folder of a CLAP of transformers")] = None,
        checkpoint: Annotated[str | None, Field(description="a checkpoint of laion-clap (.pt)")] = None,
        tokenizer: Annotated[
            str | None, Field(description="hub name or folder of the tokenizer, where it is not the model's own")
        ] = None,
        window_seconds: WindowSeconds = LONGEST_WINDOW,
        hop_seconds: HopSeconds = None,
    ) -> None:
        super().__init__(CLAP_RATE, windows_of(window_seconds, hop_seconds), {}, name or checkpoint)
        self.name, self.checkpoint = name, checkpoint
        self.tokenizer_name = tokenizer or name or "roberta-base"

    def load(self) -> AudioTower:
        if self.checkpoint is not None:
            return audio_tower_of_checkpoint(self.checkpoint)
        assert self.name is not None
        return audio_tower_by_name(self.name, "clap.name")

    def embed(self, audio: Tensor) -> Tensor:
        found: Tensor = self.network(audio)
        return found[:, None]

    @cached_property
    def text_network(self) -> TextTower:
        """The half that reads, on the device."""
        if self.checkpoint is not None:
            tower = text_tower_of_checkpoint(self.checkpoint)
        else:
            assert self.name is not None
            tower = text_tower_by_name(self.name, "clap.name")
        return tower.eval().requires_grad_(False).to(self.device)

    def to(self, device: str | torch.device) -> "ClapEmbedder":
        super().to(device)
        if "text_network" in self.__dict__:
            self.text_network.to(self.device)
        return self

    @cached_property
    def text_weights(self) -> str:
        return digest_of(self.text_network)

    @cached_property
    def tokenizer(self) -> Any:
        """RoBERTa's, as CLAP was trained with."""
        from stable_audio_tools.models.conditioners.text import load_tokenizer

        return load_tokenizer(self.tokenizer_name, "clap.tokenizer")

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Frames:
        size = 1 if self.on_cpu else batch_size
        parts = []
        for start in range(0, len(texts), size):
            # Always the full length, so that a text does not depend on the others of its batch.
            tokens = self.tokenizer(
                list(texts[start : start + size]),
                padding="max_length",
                truncation=True,
                max_length=TEXT_LENGTH,
                return_tensors="pt",
            )
            with exact_math(self.device):
                found = self.text_network(tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device))
            parts.append(found.float().cpu().numpy())
        return np.concatenate(parts)
