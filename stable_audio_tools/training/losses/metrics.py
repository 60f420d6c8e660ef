"""Metrics of reconstructions in validation; no gradient flows through them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.functional import resample

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.training.losses.auraloss import MelSTFTLoss, SISDRLoss, STFTLoss

_PESQ_RATE = 16_000


class PESQMetric(nn.Module):
    """Perceptual evaluation of speech quality (ITU-T P.862.2, wide band): 1 is bad, 4.5 is good."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self._pesq = require("pesq").pesq

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        heard, wanted = (
            resample(audio.mean(1).float().cpu(), self.sample_rate, _PESQ_RATE).numpy() for audio in (inputs, targets)
        )
        scores = [self._pesq(_PESQ_RATE, *pair, "wb") for pair in zip(wanted, heard)]
        return torch.tensor(sum(scores) / len(scores))


class SISDRMetric(SISDRLoss):
    """Scale-invariant signal-to-distortion ratio in decibels: higher is better."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return -super().forward(input, target)


def evaluation_metrics(configs: Mapping[str, Mapping[str, Any]], sample_rate: int) -> nn.ModuleDict:
    """The metrics that `training.eval_loss_configs` names, with the options given there."""
    makers = {
        "pesq": lambda options: PESQMetric(sample_rate),
        "stft": lambda options: STFTLoss(**options),
        "sisdr": lambda options: SISDRMetric(**options),
        "mel": lambda options: MelSTFTLoss(sample_rate, **options),
    }
    unknown = [name for name in configs if name not in makers]
    if unknown:
        raise ConfigError(f"training.eval_loss_configs.{unknown[0]}: unknown metric; {nearest(unknown[0], makers)}")
    return nn.ModuleDict({name: makers[name](dict(options)) for name, options in configs.items()})
