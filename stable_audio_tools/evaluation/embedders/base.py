"""What every embedder shares: windows, the device, and an identity that decides what may be compared.

A pass through a network holds windows of one item only, and on a CPU a single one. So a vector depends on the audio and
the weights, and not on the batch, on the order of files or on how processes share them.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.evaluation.windows import Windows
from stable_audio_tools.inference.sampling.exact_math import exact_math

Frames = NDArray[np.float32]  # (f, d)

WindowSeconds = Annotated[float, Field(gt=0, description="length of a window")]
HopSeconds = Annotated[float | None, Field(gt=0, description="from window to window; null: no overlap")]
KeepFrames = Annotated[
    bool, Field(description="a vector for every frame of the network, as fadtk counts, instead of one per window")
]


class Embedder(ABC):
    """Mono audio at `sample_rate` to vectors. Weights load when first used."""

    tag: str = ""
    revision = 1  # counts changes of what a class computes, so that cached vectors are not mixed
    gives_logits = False  # are the vectors scores of classes?

    def __init__(
        self, sample_rate: int, windows: Windows, settings: Mapping[str, Any], source: str | None = None
    ) -> None:
        """`settings` change the vectors; `source` only says where the weights are."""
        self.sample_rate, self.windows = sample_rate, windows
        self.settings, self.source = dict(settings), source
        self.device = torch.device("cpu")

    def load(self) -> nn.Module | None:
        """The network, where there is one."""
        return None

    @abstractmethod
    def embed(self, audio: Tensor) -> Tensor:
        """(b, n), at most a window long, to (b, f, d)"""

    @cached_property
    def network(self) -> Any:
        """The loaded network on the device, frozen."""
        network = self.load()
        return None if network is None else network.eval().requires_grad_(False).to(self.device)

    def to(self, device: str | torch.device) -> "Embedder":
        """Compute on that device."""
        self.device = torch.device(device)
        if "network" in self.__dict__ and self.network is not None:
            self.network.to(self.device)
        return self

    @cached_property
    def weights(self) -> str:
        """Digest of the weights; "none" where there are none."""
        return "none" if self.network is None else digest_of(self.network)

    @property
    def layout(self) -> dict[str, Any]:
        """What decides the vectors beside the weights."""
        return {
            "embedder": self.tag,
            "revision": self.revision,
            "settings": self.settings,
            "sample_rate": self.sample_rate,
            "window_seconds": self.windows.seconds,
            "hop_seconds": self.windows.hop_seconds,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the vectors of a given sound."""
        return {**self.layout, "weights": self.weights}

    @property
    def fingerprint(self) -> str:
        """Twelve digits of the identity."""
        return hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=6).hexdigest()

    @torch.inference_mode()
    def frames(self, audio: Tensor, batch_size: int = 8) -> Frames:
        """Mono audio (n,) at `sample_rate` to the vectors (f, d) of its windows, one after the other."""
        if audio.numel() == 0:
            raise AudioError("the audio holds no samples")
        if not bool(audio.isfinite().all()):
            raise AudioError("the audio holds NaN or infinite samples")
        rows = self.windows.cut(audio.float(), self.sample_rate)
        with exact_math(self.device):
            parts = [self.embed(part.to(self.device)) for part in rows.split(1 if self.on_cpu else batch_size)]
        found = torch.cat([part.float().cpu().flatten(0, 1) for part in parts]).numpy()
        if not np.isfinite(found).all():
            raise AudioError(f"embedder {self.tag!r} made vectors that are not finite")
        return found

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"


class TextEmbedder(Embedder):
    """An embedder that puts texts into the same space."""

    @property
    @abstractmethod
    def text_weights(self) -> str:
        """Digest of the weights that texts pass through."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Frames:
        """Unit vectors (texts, d)"""


def require_texts(embedder: Embedder) -> TextEmbedder:
    """The embedder, or a sentence where it takes no texts."""
    if not isinstance(embedder, TextEmbedder):
        raise UserError(f"embedder {embedder.tag!r} takes no texts; agreement with prompts needs 'clap'")
    return embedder


def mean_vector(frames: Frames) -> Frames:
    """The one vector (d,) of an item: the mean of its frames, in float64 on the way."""
    mean: Frames = frames.astype(np.float64).mean(axis=0).astype(np.float32)
    return mean


def digest_of(module: nn.Module) -> str:
    """Sixteen digits of all tensors of a module, by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def windows_of(seconds: float, hop_seconds: float | None) -> Windows:
    """Windows side by side unless a hop is given."""
    return Windows(seconds, seconds if hop_seconds is None else hop_seconds)


def pooled(states: Tensor, keep_frames: bool) -> Tensor:
    """(b, f, d), or its mean over frames (b, 1, d)"""
    return states if keep_frames else states.mean(dim=1, keepdim=True)
