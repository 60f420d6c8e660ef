"""Lightning's trainer: devices, strategy, precision, checkpoints, guards, demos."""

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from stable_audio_tools.core import ranks
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.packages import require
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.dedup.passages.guard import CopyGuard
from stable_audio_tools.models.transformer.continuous import recomputing_modules
from stable_audio_tools.training.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from stable_audio_tools.training.callbacks.guards import NonFiniteGuard
from stable_audio_tools.training.callbacks.progress import DryRun
from stable_audio_tools.training.callbacks.telemetry import Profile, Telemetry
from stable_audio_tools.training.distributed import Processes, accelerator_of, processes_per_node
from stable_audio_tools.training.factory import (
    TrainingSection,
    create_demo_callback_from_config,
    create_song_describer_callback_from_config,
    create_tqdm_callback_from_config,
)
from stable_audio_tools.training.loggers import create_logger, watch
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.sharding import ShardedStrategy

logger = logging.getLogger(__name__)

# Above this many parameters that gradients pass, activations on a GPU are recomputed unless the settings say otherwise.
CHECKPOINTING_ABOVE = 300_000_000


def create_trainer(
    settings: TrainSettings,
    model_config: JsonObject,
    section: TrainingSection,
    wrapper: TrainingModule,
    folder: Path,
    demo_loader: Iterable[Batch] | None = None,
    more: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Build the trainer of one run. Demos use the batch of `demo_loader`, or training batches if it is omitted."""
    _quieten()
    accelerator = accelerator_of(settings)
    manual = not wrapper.automatic_optimization
    checkpoints = folder / "checkpoints"
    set_checkpointing(wrapper, settings, accelerator)
    run_logger = create_logger(settings, folder)
    demos = create_demo_callback_from_config(model_config, demo_loader, folder / "demos")
    if settings.check_copies:
        if demos is None:
            raise UserError("--check-copies: looks demos up, and this run writes none; add training.demo to the config")
        demos.inspection = CopyGuard(settings.check_copies)
    callbacks: list[pl.Callback | None] = [
        watch(run_logger, settings, wrapper.exported),
        NonFiniteGuard(settings.nonfinite, checkpoints),  # type: ignore[arg-type]
        demos,
        create_song_describer_callback_from_config(model_config, folder),
        Telemetry(model_config["sample_rate"], counts_operations=not settings.compile),
        Profile(folder / "profile", settings.profile) if settings.profile > 0 else None,
        create_tqdm_callback_from_config(model_config),
        # A dry run leaves nothing that --recover would go on from.
        DryRun()
        if settings.dry_run
        else Checkpointing(checkpoints, settings.checkpoint_every, settings.save_top_k, model_config),
        *more,
    ]
    return _lightning(
        accelerator=accelerator,
        devices=_devices(settings),
        num_nodes=max(settings.num_nodes, ranks.launch().num_nodes),
        strategy=_strategy(settings, wrapper),
        precision=_precision(settings, accelerator),
        plugins=[AtomicCheckpointIO(), Processes()],
        max_steps=1 if settings.dry_run else settings.max_steps,
        max_epochs=settings.max_epochs,
        accumulate_grad_batches=1 if manual else settings.accum_batches,
        gradient_clip_val=None if manual else settings.gradient_clip_val or None,
        limit_train_batches=_limit(settings),
        limit_val_batches=settings.limit_val_batches,
        val_check_interval=settings.val_every * settings.accum_batches
        if settings.val_every > 0
        else None,  # in batches
        check_val_every_n_epoch=None if settings.val_every > 0 else 1,
        log_every_n_steps=1
        if settings.dry_run
        else (section.shared.logging or {}).get("log_every", settings.log_every),
        logger=run_logger or False,
        callbacks=[callback for callback in callbacks if callback is not None],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _lightning(**options: Any) -> pl.Trainer:
    """Lightning knows which devices, strategies and precisions go together; what it says of them is the user's."""
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"the trainer cannot be set up as asked: {error}") from error


def _quieten() -> None:
    """Leave Lightning its errors; advice that does not hold here goes unsaid."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*You defined a `validation_step` but have no `val_dataloader`.*",
        r".*module\(s\) in eval mode at the start of training.*",  # the frozen pretransform
        ".*does not have many workers.*",
        ".*pkg_resources is deprecated.*",
        ".*find_unused_parameters=True was specified.*",
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*`training_step` returned `None`.*",
        ".*Trainer.* has `num_nodes.*",
        ".*Be aware that when using `ckpt_path`.*",  # callbacks of the original toolkit, whose place ours take
        r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _devices(settings: TrainSettings) -> int | list[int]:
    """Devices of this machine: those that are named, or as many as there are processes."""
    if "," in settings.devices and not settings.num_gpus and accelerator_of(settings) != "cpu":
        return [int(index) for index in settings.devices.split(",") if index]
    return processes_per_node(settings)


def _strategy(settings: TrainSettings, wrapper: TrainingModule) -> str | Strategy:
    if settings.strategy == "deepspeed":
        require("deepspeed")
        from pytorch_lightning.strategies import DeepSpeedStrategy

        return DeepSpeedStrategy(stage=2, load_full_weights=True)
    if settings.strategy == "fsdp":
        if not wrapper.automatic_optimization:
            raise UserError(
                "--strategy fsdp: adversarial training steps two networks in turns, which is not divided; use ddp"
            )
        return ShardedStrategy(
            torch.bfloat16 if _precision(settings, accelerator_of(settings)) == "bf16-mixed" else None
        )
    several = ranks.world_size() > 1 or processes_per_node(settings) > 1
    if settings.strategy in ("auto", "ddp") and several:
        # With two networks that train in turns, each step leaves the other's parameters without gradients.
        return "ddp" if wrapper.automatic_optimization else "ddp_find_unused_parameters_true"
    return settings.strategy


def _precision(settings: TrainSettings, accelerator: str) -> str:
    if settings.precision == "16":
        return "16-mixed" if accelerator != "cpu" else "bf16-mixed"
    if settings.precision != "auto":
        return settings.precision
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def _limit(settings: TrainSettings) -> int | float:
    if settings.num_train_samples > 0:
        return max(1, settings.num_train_samples // (settings.batch_size * ranks.world_size()))
    return settings.limit_train_batches


def set_checkpointing(wrapper: nn.Module, settings: TrainSettings, accelerator: str) -> None:
    """Switch recomputation of activations as the settings ask; `auto` is on for large models on a GPU."""
    able = recomputing_modules(wrapper)
    wanted = settings.checkpointing == "on"
    if settings.checkpointing == "auto":
        wanted = accelerator != "cpu" and _passed_by_gradients(wrapper, able) > CHECKPOINTING_ABOVE
    for module in able:
        module.checkpointing = wanted  # type: ignore[assignment]
    logger.info("activations are %s in the backward pass", "recomputed" if wanted else "kept for use")


def _passed_by_gradients(wrapper: nn.Module, able: list[nn.Module]) -> int:
    """Trained parameters, and frozen ones beside an adapter: those cost as much in activations."""
    passed = {parameter for parameter in wrapper.parameters() if parameter.requires_grad}
    for module in able:
        if any(parameter.requires_grad for parameter in module.parameters()):
            passed.update(module.parameters())
    return sum(parameter.numel() for parameter in passed)
