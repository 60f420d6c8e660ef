"""Loggers of metrics, audio and pictures. Only the package of the chosen logger is imported."""

import dataclasses
import logging
import math
import netrc
import os
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.core.packages import require
from stable_audio_tools.core.ranks import is_rank_zero
from stable_audio_tools.data.pictures import pca_point_cloud
from stable_audio_tools.training.settings import TrainSettings

logger = logging.getLogger(__name__)

MOST_POINTS = 2000  # of a cloud of latents

# Lightning's axis. The steps of wandb itself count calls, and it drops what is logged for an earlier one.
_WANDB_STEP = "trainer/global_step"


def create_logger(settings: TrainSettings, folder: Path) -> Logger | None:
    """Create the logger that the settings name; it writes into the folder of the run."""
    project = settings.project or settings.name
    if settings.logger == "none":
        return None
    if settings.logger == "csv":
        # Lightning's writer deletes what an earlier part of a resumed run wrote, so each part has a folder.
        parts = len(list(folder.glob("metrics*")))
        return CSVLogger(folder, name="", version="metrics" if parts == 0 else f"metrics-{parts + 1}")
    if settings.logger == "tensorboard":
        if is_rank_zero() and has_wandb_login():
            logger.info("metrics are written to TensorBoard files; --logger wandb logs to Weights & Biases instead")
        return TensorBoardLogger(folder, name="", version="metrics")
    if settings.logger == "comet":
        require("comet_ml")
        from pytorch_lightning.loggers import CometLogger

        return CometLogger(project=project)
    require("wandb", extra="wandb")
    from pytorch_lightning.loggers import WandbLogger

    # A resumed run goes on under its id, in its own plots.
    noted = folder / "wandb_run_id.txt"
    number = noted.read_text().strip() if noted.exists() else token_hex(4)
    if is_rank_zero() and not noted.exists():
        write_text(noted, number + "\n")
    return WandbLogger(project=project, name=settings.name, save_dir=folder, id=number, resume="allow")


def has_wandb_login() -> bool:
    """Return whether this user can log to Weights & Biases, by a key in the environment or a login."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


# Settings of the place of a run, not of its results.
_OWN_SETTINGS = frozenset({"wandb_config", "save_dir", "ckpt_path", "recover", "dry_run"})


def with_pulled_settings(settings: TrainSettings) -> TrainSettings:
    """Replace default settings by the settings of the run that `wandb_config` names."""
    if not settings.wandb_config:
        return settings
    address = settings.wandb_config.partition("://")[2] or f"wandb.ai/{settings.wandb_config}"
    parts = [part for part in address.partition("?")[0].split("/")[1:] if part not in ("", "runs")]
    if len(parts) < 3:
        raise UserError(
            f"--wandb-config {settings.wandb_config}: expected the URL of a run, as "
            "https://wandb.ai/ENTITY/PROJECT/runs/ID"
        )
    wandb = require("wandb", extra="wandb")
    try:
        config = dict(wandb.Api().run("/".join(parts[:3])).config)
    except Exception as error:  # wandb's own errors have no common class below Exception
        raise UserError(f"--wandb-config {settings.wandb_config}: cannot be read ({error})") from error
    plain, changes = TrainSettings(), {}
    for field in dataclasses.fields(TrainSettings):
        if field.name in config and field.name not in _OWN_SETTINGS:
            default = getattr(plain, field.name)
            if getattr(settings, field.name) == default and isinstance(config[field.name], type(default)):
                changes[field.name] = config[field.name]
    logger.info("--wandb-config: %s", ", ".join(f"{key} {value}" for key, value in changes.items()) or "nothing new")
    return dataclasses.replace(settings, **changes)


def log_settings(logger: Logger | None, values: JsonObject) -> None:
    """Record settings and configs in a logger that stores them."""
    if logger is not None:
        logger.log_hyperparams(values)


def log_audio(logger: Logger | None, name: str, path: Path, sample_rate: int, step: int, caption: str = "") -> None:
    """Log an audio file to a logger that can play it."""
    experiment = _experiment(logger)
    if isinstance(logger, TensorBoardLogger):
        from stable_audio_tools.data.audio_io import read

        audio = read(path)
        experiment.add_audio(name, audio.samples.mean(0, keepdim=True), step, sample_rate=audio.sample_rate)
    elif _is(logger, "WandbLogger"):
        wandb = require("wandb", extra="wandb")
        experiment.log({name: wandb.Audio(str(path), sample_rate=sample_rate, caption=caption), _WANDB_STEP: step})
    elif _is(logger, "CometLogger"):
        experiment.log_audio(str(path), sample_rate=sample_rate, file_name=name, step=step)


def log_image(logger: Logger | None, name: str, path: Path, step: int) -> None:
    """Log a picture to a logger that shows pictures."""
    experiment = _experiment(logger)
    if isinstance(logger, TensorBoardLogger):
        import numpy as np
        from PIL import Image

        experiment.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
    elif _is(logger, "WandbLogger"):
        wandb = require("wandb", extra="wandb")
        experiment.log({name: wandb.Image(str(path)), _WANDB_STEP: step})
    elif _is(logger, "CometLogger"):
        experiment.log_image(str(path), name=name, step=step)


def log_latents(logger: Logger | None, name: str, latents: Tensor, step: int) -> None:
    """Log latents (d, t) as points: as a table to the projector of TensorBoard, in three dimensions to W&B."""
    stride = math.ceil(latents.shape[-1] / MOST_POINTS)
    frames = latents[:, ::stride].detach().float().cpu()
    if isinstance(logger, TensorBoardLogger):
        times = [str(index * stride) for index in range(frames.shape[-1])]
        logger.experiment.add_embedding(frames.T, metadata=times, tag=name, global_step=step)
    elif _is(logger, "WandbLogger"):
        cloud = pca_point_cloud(frames[None], color_scheme="time")
        _experiment(logger).log({name: cloud, _WANDB_STEP: step})


def watch(logger: Logger | None, settings: TrainSettings, model: nn.Module) -> pl.Callback | None:
    """Start what logs histograms as `--watch` says: a callback for TensorBoard, hooks of W&B on the model."""
    if not settings.watch:
        return None
    if settings.strategy in ("fsdp", "deepspeed"):
        raise UserError("--watch: histograms of divided weights are not available; use --strategy ddp or leave it out")
    if isinstance(logger, TensorBoardLogger):
        return Histograms(model, settings.watch)
    if not _is(logger, "WandbLogger"):
        raise UserError(f"--watch: --logger {settings.logger} has no histograms; use tensorboard or wandb")
    logger.watch(model, log=settings.watch, log_freq=settings.log_every, log_graph=False)  # type: ignore[union-attr]
    return None


class Histograms(pl.Callback):
    """Logs histograms of weights and gradients to TensorBoard on the steps that are logged."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        """`kind`: gradients, parameters or all."""
        self.model, self.kind = model, kind

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if not trainer._logger_connector.should_update_logs or not isinstance(trainer.logger, TensorBoardLogger):
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in stepped or parameter.grad is None:
                continue
            kinds = {"gradients": parameter.grad, "parameters": parameter.detach()}
            for kind, values in kinds.items():
                if self.kind in (kind, "all") and trainer.is_global_zero:
                    trainer.logger.experiment.add_histogram(f"{kind}/{name}", values.float(), trainer.global_step)


def _is(logger: Logger | None, name: str) -> bool:
    # by name, because importing the class imports its package
    return type(logger).__name__ == name


def _experiment(logger: Logger | None) -> Any:
    return getattr(logger, "experiment", None)
