"""Encoders of neural codecs, before their quantisers, through transformers."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders.base import (
    Embedder,
    HopSeconds,
    KeepFrames,
    WindowSeconds,
    pooled,
    windows_of,
)
from stable_audio_tools.evaluation.windows import fill_up
from stable_audio_tools.models.conditioners.hub import WEIGHT_FILES, in_dtype, load_pretrained

_Name = Annotated[str, Field(description="hub name or folder of the codec")]
_SampleRate = Annotated[int, Field(gt=0, description="rate of the codec, in Hz")]


class _Codec(Embedder):
    model_class: str

    def __init__(self, name: str, rate: int, window: float, hop: float | None, keep_frames: bool) -> None:
        super().__init__(rate, windows_of(window, hop), {"keep_frames": keep_frames}, name)
        self.name, self.keep_frames = name, keep_frames

    def load(self) -> nn.Module:
        import transformers

        loader = getattr(transformers, self.model_class)
        model: nn.Module = load_pretrained(
            loader, self.name, WEIGHT_FILES, f"{self.tag}.name", **in_dtype(torch.float32)
        )
        rate = int(model.config.sampling_rate)  # type: ignore[union-attr, arg-type]
        if rate != self.sample_rate:
            raise UserError(f"{self.tag}.sample_rate: {self.name} works at {rate} Hz, got {self.sample_rate}")
        return model

    def encode(self, audio: Tensor) -> Tensor:
        """(b, 1, n) -> (b, d, t)"""
        latents: Tensor = self.network.encoder(audio)
        return latents

    def embed(self, audio: Tensor) -> Tensor:
        return pooled(self.encode(fill_up(audio, self.sample_rate // 10)[:, None]).mT, self.keep_frames)


@register("embedder", "encodec")
class EncodecEmbedder(_Codec):
    """The encoder of EnCodec, at 24 or 48 kHz."""

    model_class = "EncodecModel"

    def __init__(
        self,
        name: _Name = "facebook/encodec_24khz",
        sample_rate: _SampleRate = 24000,
        window_seconds: WindowSeconds = 1.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
    ) -> None:
        super().__init__(name, sample_rate, window_seconds, hop_seconds, keep_frames)

    def encode(self, audio: Tensor) -> Tensor:
        config = self.network.config
        if config.normalize:
            audio = audio / (audio.square().mean(dim=-1, keepdim=True).sqrt() + 1e-8)
        return super().encode(audio.expand(-1, config.audio_channels, -1))


@register("embedder", "dac")
class DacEmbedder(_Codec):
    """The encoder of the Descript Audio Codec."""

    model_class = "DacModel"

    def __init__(
        self,
        name: _Name = "descript/dac_44khz",
        sample_rate: _SampleRate = 44100,
        window_seconds: WindowSeconds = 1.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
    ) -> None:
        super().__init__(name, sample_rate, window_seconds, hop_seconds, keep_frames)
