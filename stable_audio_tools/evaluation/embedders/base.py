"""Base class of embedders: windows over audio, the device, and an identity that decides which vectors are comparable.

A pass through a network contains windows of one file only, and on a CPU a single one. A vector therefore depends on the
audio and the weights, and not on the batch, the order of files or the number of processes.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torchaudio.functional import loudness

from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.inference.sampling.exact_math import exact_math

Frames = NDArray[np.float32]  # (f, d)
Identity = dict[str, object]  # JSON values
Framing = Literal["aligned", "padded", "partial", "first", "centred"]
Level = Literal["unchanged", "peak", "loudness"]

WindowSeconds = Annotated[float, Field(gt=0, description="length of a window")]
HopSeconds = Annotated[float | None, Field(gt=0, description="step between windows; null: no overlap")]
KeepFrames = Annotated[
    bool, Field(description="one vector per frame of the network, as in fadtk, instead of one per window")
]
FramingKey = Annotated[
    Framing,
    Field(
        description="end of a file: aligned (a last window that ends with the audio, if half a hop remains), padded (a "
        "window at every hop, filled with silence), partial (the remainder as a shorter window), first (only the first "
        "window), centred (one hop of silence on both sides)"
    ),
]
LevelKey = Annotated[
    Level, Field(description="level of the input: unchanged, peak (-1 dBFS) or loudness (-16 LUFS, at most 0 dBFS)")
]

_PEAK = 10 ** (-1 / 20)
_LOUDNESS = -16.0  # LUFS
_QUIETEST = -70.0  # LUFS; the absolute gate of ITU-R BS.1770


@dataclass(frozen=True)
class Windows:
    """Fixed windows of `seconds`, one every `hop_seconds`; the same audio is always cut at the same places."""

    seconds: float
    hop_seconds: float
    framing: Framing = "aligned"

    def __post_init__(self) -> None:
        if not 0 < self.hop_seconds <= self.seconds:
            raise ConfigError(
                f"hop_seconds: expected more than 0 and at most the window of {self.seconds:g} s, "
                f"got {self.hop_seconds:g}"
            )

    def cut(self, audio: Tensor, sample_rate: int) -> list[Tensor]:
        """Cut audio (n,) into batches (w, window) of windows of equal length, in order.

        Audio shorter than a window is one shorter window, unless silence is added.
        """
        length, hop = round(self.seconds * sample_rate), round(self.hop_seconds * sample_rate)
        samples = audio.shape[-1]
        if self.framing == "first":
            return [audio[None, :length]]
        if self.framing == "padded":
            count = -(-samples // hop)
            return [F.pad(audio, (0, (count - 1) * hop + length - samples)).unfold(0, length, hop)]
        if self.framing == "centred":
            whole = -(-samples // length) * length
            return [F.pad(audio, (hop, whole - samples + hop)).unfold(0, length, hop)]
        if samples <= length:
            return [audio[None]]
        rows = audio.unfold(0, length, hop)
        rest = samples - ((len(rows) - 1) * hop + length)
        if self.framing == "partial":
            return [rows, audio[None, -rest:]] if rest else [rows]
        return [torch.cat([rows, audio[None, -length:]]) if 2 * rest >= hop else rows]


def fill_up(audio: Tensor, samples: int) -> Tensor:
    """Append silence to (b, n) up to a length."""
    return F.pad(audio, (0, max(0, samples - audio.shape[-1])))


def set_level(audio: Tensor, level: Level, sample_rate: int) -> Tensor:
    """Scale audio (n,) or (c, n) to a level; silence stays as it is."""
    peak = audio.abs().max()
    if level == "unchanged" or not bool(peak > 0):
        return audio
    if level == "peak":
        return audio * (_PEAK / peak)
    rows = audio if audio.ndim == 2 else audio[None]
    measured = float(loudness(fill_up(rows, sample_rate // 2), sample_rate).nan_to_num(nan=_QUIETEST, neginf=_QUIETEST))
    louder = audio * 10 ** ((_LOUDNESS - max(measured, _QUIETEST)) / 20)
    return louder / louder.abs().max().clamp(min=1)


class Embedder(ABC):
    """Network that turns audio at `sample_rate` into vectors. Weights load when first used."""

    tag: str = ""
    revision = 1  # incremented when a class computes other vectors, so that cached ones are not mixed
    gives_logits = False  # are the vectors logits of classes?
    channels = 1  # of the audio that `frames` takes
    level: Level = "unchanged"
    as_int16 = False  # round samples to 16 bits, as fadtk does

    def __init__(
        self, sample_rate: int, windows: Windows, settings: Mapping[str, object], source: str | None = None
    ) -> None:
        """`settings` affect the vectors; `source` is the place of the weights."""
        self.sample_rate, self.windows = sample_rate, windows
        self.settings, self.source = dict(settings), source
        self.device = torch.device("cpu")

    def load(self) -> nn.Module | None:
        """Load the network, if there is one."""
        return None

    @abstractmethod
    def embed(self, audio: Tensor) -> Tensor:
        """Embed (b, n), at most a window long, as (b, f, d)."""

    @cached_property
    def network(self) -> Any:
        """The loaded network on the device, frozen."""
        network = self.load()
        return None if network is None else network.eval().requires_grad_(False).to(self.device)

    def to(self, device: str | torch.device) -> "Embedder":
        """Move the embedder to a device."""
        self.device = torch.device(device)
        if "network" in self.__dict__ and self.network is not None:
            self.network.to(self.device)
        return self

    @cached_property
    def weights(self) -> str:
        """Digest of the weights; "none" if there are none."""
        return "none" if self.network is None else digest_of(self.network)

    @property
    def layout(self) -> Identity:
        """Everything that affects the vectors, except the weights."""
        layout: Identity = {
            "embedder": self.tag,
            "revision": self.revision,
            "settings": self.settings,
            "sample_rate": self.sample_rate,
            "window_seconds": self.windows.seconds,
            "hop_seconds": self.windows.hop_seconds,
        }
        changed = {"framing": self.windows.framing, "level": self.level, "int16": self.as_int16}
        usual = {"framing": "aligned", "level": "unchanged", "int16": False}
        return {**layout, **{key: value for key, value in changed.items() if value != usual[key]}}

    @cached_property
    def identity(self) -> Identity:
        """Everything that affects the vectors of a sound."""
        return {**self.layout, "weights": self.weights}

    @property
    def fingerprint(self) -> str:
        """Twelve digits of the identity."""
        return hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=6).hexdigest()

    @torch.inference_mode()
    def frames(self, audio: Tensor, batch_size: int = 8) -> Frames:
        """Embed audio at `sample_rate`, (n,) or with several channels (c, n), as the vectors (f, d) of its windows."""
        if audio.numel() == 0:
            raise AudioError("the audio contains no samples")
        if not bool(audio.isfinite().all()):
            raise AudioError("the audio contains NaN or infinite samples")
        audio = audio.float()
        if self.level == "loudness":  # measured on the rounded samples of a file; a peak is set before rounding
            audio = set_level(self._rounded(audio), self.level, self.sample_rate)
        else:
            audio = self._rounded(set_level(audio, self.level, self.sample_rate))
        rows = audio if audio.ndim == 2 else audio[None]
        # Vectors of several channels are put side by side.
        vectors = np.concatenate([self._channel_frames(channel, batch_size) for channel in rows], axis=1)
        if not np.isfinite(vectors).all():
            raise AudioError(f"embedder {self.tag!r} gave vectors that are not finite")
        return vectors

    def _rounded(self, audio: Tensor) -> Tensor:
        return (audio.clamp(-1, 1) * 32767).round() / 32768 if self.as_int16 else audio

    def _channel_frames(self, audio: Tensor, batch_size: int) -> Frames:
        batches = self.windows.cut(audio, self.sample_rate)
        size = 1 if self.on_cpu else batch_size
        with exact_math(self.device):
            parts = [self.embed(part.to(self.device)) for rows in batches for part in rows.split(size)]
        found: Frames = torch.cat([part.float().cpu().flatten(0, 1) for part in parts]).numpy()
        return found

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"


class TextEmbedder(Embedder):
    """Embedder that maps texts into the same space."""

    @property
    @abstractmethod
    def text_weights(self) -> str:
        """Digest of the weights of the text network."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Frames:
        """Embed texts as unit vectors (texts, d)."""


def require_texts(embedder: Embedder) -> TextEmbedder:
    """Return the embedder, or raise if it cannot embed texts."""
    if not isinstance(embedder, TextEmbedder):
        raise UserError(f"embedder {embedder.tag!r} takes no texts; agreement with prompts needs 'clap'")
    return embedder


def mean_vector(frames: Frames) -> Frames:
    """Average the frames of an item to one vector (d,), in float64."""
    mean: Frames = frames.astype(np.float64).mean(axis=0).astype(np.float32)
    return mean


def digest_of(module: nn.Module) -> str:
    """Return sixteen digits of the tensors of a module and their names. Processes that divide it call this together."""
    digest = hashlib.blake2b(digest_size=8)
    for name, stored in sorted(module.state_dict().items()):
        tensor: Tensor = stored.full_tensor() if isinstance(stored, DTensor) else stored
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def windows_of(seconds: float, hop_seconds: float | None, framing: Framing = "aligned") -> Windows:
    """Return windows without overlap unless a hop is given."""
    return Windows(seconds, seconds if hop_seconds is None else hop_seconds, framing)


def pooled(states: Tensor, keep_frames: bool) -> Tensor:
    """Return states (b, f, d), or their mean over frames (b, 1, d)."""
    return states if keep_frames else states.mean(dim=1, keepdim=True)
