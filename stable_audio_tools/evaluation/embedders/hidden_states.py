"""Layers of self-supervised networks on waveforms: wav2vec 2.0, HuBERT, WavLM and MERT, through transformers."""

from functools import cached_property
from typing import Annotated, Any

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
from stable_audio_tools.models.conditioners.hub import (
    FEATURE_FILES,
    WEIGHT_FILES,
    in_dtype,
    load_pretrained,
    read_pretrained_config,
)

_Name = Annotated[str, Field(description="hub name or folder of the model")]
_Layer = Annotated[int, Field(description="whose states: 0 is what enters the first layer, -1 what leaves the last")]


class _HiddenStates(Embedder):
    def __init__(self, name: str, layer: int, rate: int, window: float, hop: float | None, keep_frames: bool) -> None:
        super().__init__(rate, windows_of(window, hop), {"layer": layer, "keep_frames": keep_frames}, name)
        self.name, self.layer, self.keep_frames = name, layer, keep_frames

    def load(self) -> nn.Module:
        from transformers import AutoModel

        return self._pretrained(AutoModel)

    def _pretrained(self, loader: Any, **options: Any) -> nn.Module:
        key = f"{self.tag}.name"
        model: nn.Module = load_pretrained(loader, self.name, WEIGHT_FILES, key, **in_dtype(torch.float32), **options)
        layers = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if not -layers - 1 <= self.layer <= layers:
            raise UserError(f"{self.tag}.layer: expected from {-layers - 1} to {layers}, got {self.layer}")
        return model

    @cached_property
    def normalises(self) -> bool:
        """Does the model want each window at zero mean and unit variance?"""
        from transformers import AutoFeatureExtractor

        features = load_pretrained(AutoFeatureExtractor, self.name, FEATURE_FILES, f"{self.tag}.name")
        if features.sampling_rate != self.sample_rate:
            raise UserError(
                f"{self.tag}.sample_rate: {self.name} works at {features.sampling_rate} Hz, got {self.sample_rate}"
            )
        return bool(features.do_normalize)

    def embed(self, audio: Tensor) -> Tensor:
        audio = fill_up(audio, self.sample_rate // 10)
        if self.normalises:
            variance, mean = torch.var_mean(audio, dim=-1, correction=0, keepdim=True)
            audio = (audio - mean) / (variance + 1e-7).sqrt()
        states: Tensor = self.network(audio, output_hidden_states=True).hidden_states[self.layer]
        return pooled(states, self.keep_frames)


@register("embedder", "wav2vec")
class Wav2vecEmbedder(_HiddenStates):
    """A layer of wav2vec 2.0, HuBERT, WavLM or another network of transformers that takes waveforms."""

    def __init__(
        self,
        name: _Name = "facebook/wav2vec2-base-960h",
        layer: _Layer = -1,
        sample_rate: Annotated[int, Field(gt=0, description="rate of the model, in Hz")] = 16000,
        window_seconds: WindowSeconds = 5.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
    ) -> None:
        super().__init__(name, layer, sample_rate, window_seconds, hop_seconds, keep_frames)


@register("embedder", "mert")
class MertEmbedder(_HiddenStates):
    """A layer of MERT, which was trained on music."""

    def __init__(
        self,
        name: _Name = "m-a-p/MERT-v1-95M",
        layer: _Layer = -1,
        sample_rate: Annotated[int, Field(gt=0, description="rate of the model, in Hz")] = 24000,
        window_seconds: WindowSeconds = 5.0,
        hop_seconds: HopSeconds = None,
        keep_frames: KeepFrames = False,
    ) -> None:
        super().__init__(name, layer, sample_rate, window_seconds, hop_seconds, keep_frames)

    def load(self) -> nn.Module:
        """MERT is a HuBERT whose repository brings code of its own; that code is not run."""
        from transformers import HubertConfig, HubertModel

        stored = read_pretrained_config(self.name, "mert.name")
        unknown = [key for key in ("feature_extractor_cqt", "deepnorm") if stored.get(key)]
        if unknown or stored.get("attention_relax", -1) > 0:
            raise UserError(
                f"mert.name: {self.name} uses {', '.join(unknown) or 'attention_relax'}, which HuBERT lacks"
            )
        given = {key: value for key, value in stored.items() if key not in ("model_type", "auto_map", "architectures")}
        return self._pretrained(HubertModel, config=HubertConfig.from_dict(given))
