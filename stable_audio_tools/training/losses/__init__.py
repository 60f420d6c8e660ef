"""Losses of training: named modules, and spectral distances."""

from stable_audio_tools.training.losses.features import HubertLoss
from stable_audio_tools.training.losses.mel import MelSpectrogramLoss
from stable_audio_tools.training.losses.metrics import PESQMetric
from stable_audio_tools.training.losses.modules import (
    AuralossLoss,
    DynamicLossWeighting,
    L1Loss,
    LossModule,
    LossWithTarget,
    MSELoss,
    MultiLoss,
    StereoImageLoss,
    TargetValueLoss,
    TimeDomainMMDLoss,
    ValueLoss,
)
from stable_audio_tools.training.losses.utils import grouped_mmd, mmd

__all__ = [
    "AuralossLoss",
    "DynamicLossWeighting",
    "HubertLoss",
    "L1Loss",
    "LossModule",
    "LossWithTarget",
    "MSELoss",
    "MelSpectrogramLoss",
    "MultiLoss",
    "PESQMetric",
    "StereoImageLoss",
    "TargetValueLoss",
    "TimeDomainMMDLoss",
    "ValueLoss",
    "grouped_mmd",
    "mmd",
]
