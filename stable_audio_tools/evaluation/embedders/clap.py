"""CLAP: sounds and texts in one space."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.evaluation.embedders.base import (
    Frames,
    FramingKey,
    HopSeconds,
    Level,
    LevelKey,
    TextEmbedder,
    Windows,
    WindowSeconds,
    digest_of,
    windows_of,
)
from stable_audio_tools.evaluation.embedders.published import weight_file
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
LONGEST_WINDOW = 10.0  # seconds; CLAP itself crops longer audio at random, or fuses parts of it
_LONGEST_CLIP = 1e9  # seconds


def _check_source(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if (config.name is None) == (config.checkpoint is None):
        yield "name", "give one of name (such as 'laion/clap-htsat-fused') and checkpoint (of laion-clap)"
    if config.window_seconds > LONGEST_WINDOW:
        yield "window_seconds", f"a window of CLAP has at most {LONGEST_WINDOW:g} s, got {config.window_seconds:g}"


@register("embedder", "clap", check=_check_source)
class ClapEmbedder(TextEmbedder):
    """CLAP of transformers by name or folder, or of a laion-clap checkpoint; unit vectors of sounds and texts."""

    def __init__(
        self,
        name: Annotated[str | None, Field(description="hub name or folder of a CLAP of transformers")] = None,
        checkpoint: Annotated[
            str | None, Field(description="checkpoint of laion-clap (.pt): a file, or the name of a published one")
        ] = None,
        tokenizer: Annotated[
            str | None, Field(description="hub name or folder of the tokenizer, if it is not the model's own")
        ] = None,
        window_seconds: WindowSeconds = LONGEST_WINDOW,
        hop_seconds: HopSeconds = None,
        clip: Annotated[
            Literal["windows", "whole"],
            Field(
                description="windows, or the whole file as one vector: a fusion model combines a summary of the file "
                "with three crops, other models crop 10 s"
            ),
        ] = "windows",
        framing: FramingKey = "aligned",
        level: LevelKey = "unchanged",
        int16: Annotated[bool, Field(description="round samples to 16 bits, as laion-clap's examples do")] = False,
    ) -> None:
        whole = Windows(_LONGEST_CLIP, _LONGEST_CLIP)
        windows = whole if clip == "whole" else windows_of(window_seconds, hop_seconds, framing)
        super().__init__(CLAP_RATE, windows, {} if clip == "windows" else {"clip": clip}, name or checkpoint)
        self.name, self.checkpoint = name, checkpoint
        self.level: Level = level
        self.as_int16 = int16
        self.tokenizer_name = tokenizer or name or "roberta-base"

    def load(self) -> AudioTower:
        if self.checkpoint is not None:
            return audio_tower_of_checkpoint(weight_file(self.checkpoint, "clap.checkpoint"))
        assert self.name is not None
        return audio_tower_by_name(self.name, "clap.name")

    def embed(self, audio: Tensor) -> Tensor:
        with _fixed_crops():
            found: Tensor = self.network(audio)
        return found[:, None]

    @cached_property
    def text_network(self) -> TextTower:
        """The text network on the device."""
        if self.checkpoint is not None:
            tower = text_tower_of_checkpoint(weight_file(self.checkpoint, "clap.checkpoint"))
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
        """Tokenizer of the text network."""
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


@contextmanager
def _fixed_crops() -> Iterator[None]:
    """Draw the same crops for every file: CLAP's features take them from NumPy's global generator."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
