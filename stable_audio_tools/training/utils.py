"""Published import path."""

from stable_audio_tools.training.optimizers import (
    InverseLR,
    create_optimizer_from_config,
    create_scheduler_from_config,
)

__all__ = ["InverseLR", "create_optimizer_from_config", "create_scheduler_from_config"]
