"""Embedders of other packages: PaSST through hear21passt, OpenL3 through openl3."""

import hashlib
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.packages import require
from stable_audio_tools.evaluation.embedders.base import (
    Embedder,
    Frames,
    HopSeconds,
    Level,
    LevelKey,
    Windows,
    fill_up,
    windows_of,
)

_PASST_CLASSES = 527
_PASST_SHORTEST = 0.15  # of a window; shorter remainders are not filled with silence
_OPENL3_RATE = 48000


class _PasstWindows(Windows):
    """Windows of stable-audio-metrics: one every hop, except in the last hop of the audio."""

    def cut(self, audio: Tensor, sample_rate: int) -> list[Tensor]:
        length, hop = round(self.seconds * sample_rate), round(self.hop_seconds * sample_rate)
        pieces = []
        for start in range(0, max(hop, audio.shape[-1] - hop), hop):
            piece = audio[None, start : start + length]
            pieces.append(fill_up(piece, length) if piece.shape[-1] > int(length * _PASST_SHORTEST) else piece)
        return pieces


@register("embedder", "passt")
class PasstEmbedder(Embedder):
    """PaSST (Koutini et al. 2022) through hear21passt: its features, or its logits of the AudioSet classes."""

    def __init__(
        self,
        output: Annotated[Literal["features", "logits"], Field(description="output of the network")] = "features",
        window_seconds: Annotated[float, Field(gt=0, le=10, description="length of a window")] = 10.0,
        hop_seconds: HopSeconds = None,
        level: LevelKey = "unchanged",
        framing: Annotated[
            Literal["aligned", "stable-audio-metrics"],
            Field(description="end of a file: aligned as elsewhere, or filled with silence as in stable-audio-metrics"),
        ] = "aligned",
    ) -> None:
        plain = windows_of(window_seconds, hop_seconds)
        windows = plain if framing == "aligned" else _PasstWindows(plain.seconds, plain.hop_seconds, "padded")
        super().__init__(32000, windows, {"output": output}, "hear21passt")
        if framing != "aligned":
            self.settings["framing"] = framing
        self.level: Level = level
        self.gives_logits = output == "logits"

    def load(self) -> nn.Module:
        try:
            model: nn.Module = require("hear21passt.base").load_model()
        except OSError as error:
            raise UserError(
                f"embedder 'passt': the weights of PaSST cannot be downloaded ({error}). Where there is a network, run "
                "`python -c 'from hear21passt.base import load_model; load_model()'`, and copy the folder "
                "~/.cache/torch/hub/checkpoints to this machine"
            ) from None
        return model

    def embed(self, audio: Tensor) -> Tensor:
        both: Tensor = self.network.get_scene_embeddings(audio)  # logits, then features
        chosen = both[:, :_PASST_CLASSES] if self.gives_logits else both[:, _PASST_CLASSES:]
        return chosen[:, None]


@register("embedder", "openl3")
class Openl3Embedder(Embedder):
    """OpenL3 (Cramer et al. 2019) through openl3, which runs on TensorFlow: vectors of windows of one second."""

    def __init__(
        self,
        content_type: Annotated[Literal["music", "env"], Field(description="training data of the network")] = "music",
        input_repr: Annotated[Literal["linear", "mel128", "mel256"], Field(description="input spectrogram")] = "mel256",
        embedding_size: Annotated[Literal[512, 6144], Field(description="width of the vectors")] = 512,
        hop_seconds: HopSeconds = None,
        channels: Annotated[
            Literal[1, 2], Field(description="2: embed left and right, and put their vectors side by side")
        ] = 1,
        centre: Annotated[bool, Field(description="centre the first window on the first sample")] = False,
        sample_rate: Annotated[
            int, Field(gt=0, le=_OPENL3_RATE, description="rate that limits the bandwidth, in Hz")
        ] = _OPENL3_RATE,
        level: LevelKey = "unchanged",
    ) -> None:
        self.model_settings = {
            "content_type": content_type,
            "input_repr": input_repr,
            "embedding_size": embedding_size,
        }
        windows = Windows(1.0, 1.0 if hop_seconds is None else hop_seconds)
        super().__init__(sample_rate, windows, self.model_settings, "openl3")
        self.channels, self.centre, self.level = channels, centre, level
        extra = {"channels": (channels, 1), "centre": (centre, False)}
        self.settings.update({key: value for key, (value, usual) in extra.items() if value != usual})

    @cached_property
    def network(self) -> Any:
        return require("openl3").models.load_audio_embedding_model(**self.model_settings)

    @cached_property
    def weights(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for array in self.network.get_weights():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def embed(self, audio: Tensor) -> Tensor:
        """Embed each row (b, n) whole: the package cuts the windows itself."""
        clips = list(fill_up(audio, self.sample_rate).cpu().numpy())
        found, _ = require("openl3").get_audio_embedding(
            clips,
            self.sample_rate,
            model=self.network,
            center=self.centre,
            hop_size=self.windows.hop_seconds,
            verbose=False,
        )
        return torch.stack([torch.from_numpy(np.asarray(vectors)) for vectors in found])

    def _channel_frames(self, audio: Tensor, batch_size: int) -> Frames:
        if self.centre:
            return self.embed(audio[None])[0].numpy()
        return super()._channel_frames(audio, batch_size)
