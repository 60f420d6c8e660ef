"""Embedders through transformers: encoders of neural codecs, layers of self-supervised networks, and classifiers."""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders.base import (
    Embedder,
    FramingKey,
    HopSeconds,
    KeepFrames,
    Level,
    LevelKey,
    Windows,
    WindowSeconds,
    fill_up,
    pooled,
    windows_of,
)
from stable_audio_tools.models.conditioners.hub import (
    FEATURE_FILES,
    WEIGHT_FILES,
    in_dtype,
    load_pretrained,
    read_pretrained_config,
)

_Rate = Annotated[int, Field(gt=0, description="sample rate of the model, in Hz")]
_Int16 = Annotated[bool, Field(description="round samples to 16 bits, as in fadtk")]


class _ModelClass(Protocol):
    """A class of transformers with `from_pretrained`."""

    from_pretrained: Callable[..., nn.Module]


class _Pretrained(Embedder):
    """Embedder with a network of transformers by hub name or folder."""

    def __init__(
        self, name: str, rate: int, windows: Windows, settings: dict[str, object], int16: bool = False
    ) -> None:
        super().__init__(rate, windows, settings, name)
        self.name, self.as_int16 = name, int16

    def read(self, loader: _ModelClass, **options: object) -> nn.Module:
        model: nn.Module = load_pretrained(
            loader, self.name, WEIGHT_FILES, f"{self.tag}.name", **in_dtype(torch.float32), **options
        )
        return model

    @cached_property
    def features(self) -> Any:
        """Feature extractor of the model."""
        from transformers import AutoFeatureExtractor

        return load_pretrained(AutoFeatureExtractor, self.name, FEATURE_FILES, f"{self.tag}.name")

    def require_rate(self, rate: int) -> None:
        if rate != self.sample_rate:
            raise UserError(f"{self.tag}.sample_rate: {self.name} works at {rate} Hz, got {self.sample_rate}")


# ------------------------------------------------------------------ codecs

_CodecName = Annotated[str, Field(description="hub name or folder of the codec")]


class _Codec(_Pretrained):
    def __init__(self, name: str, rate: int, windows: Windows, keep_frames: bool, int16: bool) -> None:
        super().__init__(name, rate, windows, {"keep_frames": keep_frames}, int16)
        self.keep_frames = keep_frames

    def encode(self, audio: Tensor) -> Tensor:
        """Encode (b, 1, n) as (b, d, t)."""
        latents: Tensor = self.network.encoder(audio)
        return latents

    def embed(self, audio: Tensor) -> Tensor:
        return pooled(self.encode(fill_up(audio, self.sample_rate // 10)[:, None]).mT, self.keep_frames)


@register("embedder", "encodec")
class EncodecEmbedder(_Codec):
    """Encoder of EnCodec at 24 or 48 kHz, before its quantiser."""

    def __init__(
        self,
        name: _CodecName = "facebook/encodec_24khz",
        sample_rate: _Rate = 24000,
        window_seconds: WindowSeconds = 1.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
        framing: FramingKey = "aligned",
        int16: _Int16 = False,
        normalise: Annotated[
            bool | None, Field(description="scale windows to unit RMS; null: as the codec does, false: as fadtk does")
        ] = None,
    ) -> None:
        super().__init__(name, sample_rate, windows_of(window_seconds, hop_seconds, framing), keep_frames, int16)
        self.normalise = normalise
        if normalise is not None:
            self.settings["normalise"] = normalise

    def load(self) -> nn.Module:
        from transformers import EncodecModel

        model = self.read(EncodecModel)
        self.require_rate(model.config.sampling_rate)  # type: ignore[union-attr, arg-type]
        return model

    def encode(self, audio: Tensor) -> Tensor:
        config = self.network.config
        if config.normalize if self.normalise is None else self.normalise:
            audio = audio / (audio.square().mean(dim=-1, keepdim=True).sqrt() + 1e-8)
        return super().encode(audio.expand(-1, config.audio_channels, -1))


@register("embedder", "dac")
class DacEmbedder(_Codec):
    """Encoder of the Descript Audio Codec, before its quantiser."""

    def __init__(
        self,
        name: _CodecName = "descript/dac_44khz",
        sample_rate: _Rate = 44100,
        window_seconds: WindowSeconds = 1.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
        framing: FramingKey = "aligned",
        level: LevelKey = "unchanged",
        int16: _Int16 = False,
    ) -> None:
        super().__init__(name, sample_rate, windows_of(window_seconds, hop_seconds, framing), keep_frames, int16)
        self.level: Level = level

    def load(self) -> nn.Module:
        from transformers import DacModel

        model = self.read(DacModel)
        self.require_rate(model.config.sampling_rate)  # type: ignore[union-attr, arg-type]
        return model


# ------------------------------------------------------------------ self-supervised networks

_Name = Annotated[str, Field(description="hub name or folder of the model")]
_Layer = Annotated[
    int, Field(description="layer of the hidden states: 0 is the input of the first layer, -1 the output of the last")
]


class _HiddenStates(_Pretrained):
    def __init__(
        self, name: str, layer: int, rate: int, windows: Windows, keep_frames: bool, int16: bool = False
    ) -> None:
        super().__init__(name, rate, windows, {"layer": layer, "keep_frames": keep_frames}, int16)
        self.layer, self.keep_frames = layer, keep_frames

    def load(self) -> nn.Module:
        from transformers import AutoModel

        return self.read_layers(AutoModel)

    def read_layers(self, loader: _ModelClass, **options: object) -> nn.Module:
        model = self.read(loader, **options)
        layers = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if not -layers - 1 <= self.layer <= layers:
            raise UserError(f"{self.tag}.layer: expected from {-layers - 1} to {layers}, got {self.layer}")
        return model

    @cached_property
    def normalises(self) -> bool:
        """Does the model expect windows with zero mean and unit variance?"""
        self.require_rate(self.features.sampling_rate)
        return bool(self.features.do_normalize)

    def embed(self, audio: Tensor) -> Tensor:
        audio = fill_up(audio, self.sample_rate // 10)
        if self.normalises:
            variance, mean = torch.var_mean(audio, dim=-1, correction=0, keepdim=True)
            audio = (audio - mean) / (variance + 1e-7).sqrt()
        states: Tensor = self.network(audio, output_hidden_states=True).hidden_states[self.layer]
        return pooled(states, self.keep_frames)


@register("embedder", "wav2vec")
class Wav2vecEmbedder(_HiddenStates):
    """Layer of wav2vec 2.0, HuBERT, WavLM or another network of transformers that takes waveforms."""

    def __init__(
        self,
        name: _Name = "facebook/wav2vec2-base-960h",
        layer: _Layer = -1,
        sample_rate: _Rate = 16000,
        window_seconds: WindowSeconds = 5.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
        framing: FramingKey = "aligned",
        int16: _Int16 = False,
    ) -> None:
        windows = windows_of(window_seconds, hop_seconds, framing)
        super().__init__(name, layer, sample_rate, windows, keep_frames, int16)


@register("embedder", "mert")
class MertEmbedder(_HiddenStates):
    """Layer of MERT, a self-supervised model of music."""

    def __init__(
        self,
        name: _Name = "m-a-p/MERT-v1-95M",
        layer: _Layer = -1,
        sample_rate: _Rate = 24000,
        window_seconds: WindowSeconds = 5.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
        framing: FramingKey = "aligned",
        int16: _Int16 = False,
    ) -> None:
        windows = windows_of(window_seconds, hop_seconds, framing)
        super().__init__(name, layer, sample_rate, windows, keep_frames, int16)

    def load(self) -> nn.Module:
        """Load MERT as a HuBERT, without running the code in its repository."""
        from transformers import HubertConfig, HubertModel

        stored = read_pretrained_config(self.name, "mert.name")
        unknown = [key for key in ("feature_extractor_cqt", "deepnorm") if stored.get(key)]
        if unknown or stored.get("attention_relax", -1) > 0:
            raise UserError(
                f"mert.name: {self.name} uses {', '.join(unknown) or 'attention_relax'}, which HuBERT lacks"
            )
        known = {key: value for key, value in stored.items() if key not in ("model_type", "auto_map", "architectures")}
        return self.read_layers(HubertModel, config=HubertConfig.from_dict(known))


# ------------------------------------------------------------------ classifiers


@register("embedder", "classifier")
class ClassifierEmbedder(_Pretrained):
    """Logits of an audio classifier of transformers, such as AST of AudioSet."""

    gives_logits = True

    def __init__(
        self,
        name: Annotated[
            str, Field(description="hub name or folder of the classifier")
        ] = "MIT/ast-finetuned-audioset-10-10-0.4593",
        sample_rate: _Rate = 16000,
        window_seconds: WindowSeconds = 10.0,
        hop_seconds: HopSeconds = None,
    ) -> None:
        super().__init__(name, sample_rate, windows_of(window_seconds, hop_seconds), {})

    def load(self) -> nn.Module:
        from transformers import AutoModelForAudioClassification

        return self.read(AutoModelForAudioClassification)

    def embed(self, audio: Tensor) -> Tensor:
        clips = list(audio.cpu().numpy())
        inputs = self.features(clips, sampling_rate=self.sample_rate, return_tensors="pt").to(self.device)
        logits: Tensor = self.network(**inputs).logits
        return logits[:, None]
