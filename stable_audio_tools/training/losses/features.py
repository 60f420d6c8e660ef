"""Distance of two signals in the features of a pretrained speech model."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import resample

logger = logging.getLogger(__name__)

SpeechModel = Literal["HUBERT_LARGE", "WAVLM_LARGE", "WAV2VEC2_LARGE_LV60K"]
_RATE = 16_000  # of every one of them
_CONVOLUTIONS_ONLY = [-1]


class HubertLoss(nn.Module):
    """L1 distance of features, relative to the spread of the target's, averaged over layers.

    `feature_ids` picks transformer layers; `[-1]` stands for the convolutional features before them. The weights are
    fetched through torchaudio when the loss is first computed, and are kept out of checkpoints.
    """

    def __init__(
        self,
        feature_ids: Sequence[int] | None = None,
        model_name: SpeechModel = "HUBERT_LARGE",
        sample_rate: int = _RATE,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.feature_ids = None if feature_ids is None else list(feature_ids)
        self.model_name, self.sample_rate = model_name, sample_rate
        # A list hides the submodule: checkpoints would hold a gigabyte of frozen weights otherwise.
        self._loaded: list[nn.Module] = [] if model is None else [model]

    def model(self, device: torch.device) -> Any:
        if not self._loaded:
            import torchaudio

            logger.info("fetching %s through torchaudio (about 1.2 GB, kept in torch's hub cache)", self.model_name)
            self._loaded = [getattr(torchaudio.pipelines, self.model_name).get_model()]
        self._loaded[0] = self._loaded[0].to(device).eval().requires_grad_(False)
        return self._loaded[0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y (b, c, n): y is the target; every channel counts as one signal"""
        features_x, features_y = (self._features(signal.flatten(0, 1).float()) for signal in (x, y))
        terms = [F.l1_loss(a, b) / (b.std() + 1e-5) for a, b in zip(features_x, features_y)]
        return torch.stack(terms).mean()

    def _features(self, audio: Tensor) -> list[Tensor]:
        model = self.model(audio.device)
        audio = resample(audio, self.sample_rate, _RATE)
        if self.feature_ids == _CONVOLUTIONS_ONLY:
            inner = getattr(model, "model", model)
            if getattr(model, "normalize_waveform", False):
                audio = F.layer_norm(audio, audio.shape)
            return [inner.feature_extractor(audio, None)[0]]
        layers: list[Tensor] = model.extract_features(audio)[0]
        wanted = range(len(layers)) if self.feature_ids is None else self.feature_ids
        return [layers[index] for index in wanted]
