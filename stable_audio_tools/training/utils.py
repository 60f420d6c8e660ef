"""Published import path of optimisers, schedules and log functions."""

from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.core.packages import require
from stable_audio_tools.core.ranks import rank as get_rank
from stable_audio_tools.data.pictures import pca_point_cloud
from stable_audio_tools.models.checkpoints.loading import copy_state_dict
from stable_audio_tools.training.masked_losses import (
    compute_masked_loss,
    compute_normalized_mse,
    compute_per_elem_trim,
    create_augmented_padding_mask,
    masked_mean,
    masked_sum,
    resize_padding_mask,
    trim_and_concat,
)
from stable_audio_tools.training.optimizers import (
    InverseLR,
    create_optimizer_from_config,
    create_scheduler_from_config,
)

__all__ = [
    "InverseLR",
    "compute_masked_loss",
    "compute_normalized_mse",
    "compute_per_elem_trim",
    "copy_state_dict",
    "create_augmented_padding_mask",
    "create_optimizer_from_config",
    "create_scheduler_from_config",
    "get_rank",
    "log_audio",
    "log_image",
    "log_metric",
    "log_point_cloud",
    "logger_project_name",
    "masked_mean",
    "masked_sum",
    "resize_padding_mask",
    "trim_and_concat",
]


def logger_project_name(logger: Any) -> str | None:
    """The project of a Weights & Biases or Comet logger; None for other loggers."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        return str(logger.experiment.project)
    return str(logger.name) if kind == "CometLogger" else None


def log_metric(logger: Any, key: str, value: Any, step: int | None = None) -> None:
    """Log a number to any Lightning logger."""
    if type(logger).__name__ == "WandbLogger":
        logger.experiment.log({key: value})
    elif logger is not None:
        logger.log_metrics({key: float(value)}, step=step)


def log_audio(logger: Any, key: str, audio_path: str | Path, sample_rate: int, caption: str | None = None) -> None:
    """Log an audio file to a Weights & Biases or Comet logger; others show none."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        wandb = require("wandb", extra="wandb")
        logger.experiment.log({key: wandb.Audio(str(audio_path), sample_rate=sample_rate, caption=caption)})
    elif kind == "CometLogger":
        logger.experiment.log_audio(str(audio_path), file_name=key, sample_rate=sample_rate)


def log_image(logger: Any, key: str, img_data: Any) -> None:
    """Log a picture to a Weights & Biases or Comet logger; others show none."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        logger.experiment.log({key: require("wandb", extra="wandb").Image(img_data)})
    elif kind == "CometLogger":
        logger.experiment.log_image(img_data, name=key)


def log_point_cloud(logger: Any, key: str, tokens: Tensor, caption: str | None = None) -> None:
    """Log latents (b, d, t) as points in space to a Weights & Biases logger; others show none."""
    if type(logger).__name__ == "WandbLogger":
        logger.experiment.log({key: pca_point_cloud(tokens, output_type="wandbobj")})
