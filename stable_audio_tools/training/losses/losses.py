"""Published import path of the named losses."""

from stable_audio_tools.training.losses.modules import (
    AuralossLoss,
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

__all__ = [
    "AuralossLoss",
    "L1Loss",
    "LossModule",
    "LossWithTarget",
    "MSELoss",
    "MultiLoss",
    "StereoImageLoss",
    "TargetValueLoss",
    "TimeDomainMMDLoss",
    "ValueLoss",
]
