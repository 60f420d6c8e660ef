"""What `train.py` does: check everything, build, load, and fit."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from stable_audio_tools.config import ConfigError, UserError, load
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.models.autoencoders.weight_norm import remove_weight_norm_from_model
from stable_audio_tools.models.checkpoints import load_into
from stable_audio_tools.models.factory import check_model_config
from stable_audio_tools.system.ranks import is_rank_zero, rank, world_size
from stable_audio_tools.system.seeds import MAX_SEED, seed_everything
from stable_audio_tools.training.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from stable_audio_tools.training.callbacks.guards import NonFiniteGuard, out_of_memory_advice, require_trainable
from stable_audio_tools.training.callbacks.progress import DryRun, ProgressBar
from stable_audio_tools.training.factory import (
    TrainingSection,
    check_training_config,
    create_demo_callback_from_config,
    create_training_wrapper_from_config,
)
from stable_audio_tools.training.loggers import create_logger, log_settings
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run_folder import describe_run, new_run_folder, newest_whole_checkpoint
from stable_audio_tools.training.settings import TrainSettings

logger = logging.getLogger(__name__)

# Above this many trained parameters, activations on a GPU are recomputed unless the settings say otherwise.
CHECKPOINTING_ABOVE = 300_000_000


@dataclasses.dataclass(frozen=True)
class RunConfigs:
    """The files that a run is made from."""

    model: dict[str, Any]
    dataset: dict[str, Any]
    val_dataset: dict[str, Any] | None


def fit(settings: TrainSettings) -> Path:
    """Train as the settings say -> the run folder."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    configs, section = read_configs(settings)
    settings = _with_section(settings, section)
    resumed = _checkpoint_to_resume(settings)
    folder = _run_folder(settings, resumed)
    if is_rank_zero():
        files = {
            "model_config": configs.model,
            "dataset_config": configs.dataset,
            "val_dataset_config": configs.val_dataset,
        }
        describe_run(folder, dataclasses.asdict(settings), files)

    seed_everything(settings.seed)
    model = build_model(settings, configs.model, resuming=resumed is not None)
    wrapper = create_training_wrapper_from_config(
        configs.model, model, settings.accum_batches, settings.gradient_clip_val
    )
    require_trainable(wrapper)
    trainer = create_trainer(settings, configs, section, wrapper, folder)
    log_settings(trainer.logger, {**dataclasses.asdict(settings), "model_config": configs.model})
    # Each process draws noise of its own; the weights above are the same in all.
    seed_everything((settings.seed + rank()) % MAX_SEED)
    loader, val_loader = (
        _loader(settings, configs.model, dataset, shuffle)
        for dataset, shuffle in ((configs.dataset, True), (configs.val_dataset, False))
    )
    if settings.compile:
        _compile(wrapper)
    logger.info("run folder: %s", folder)
    try:
        trainer.fit(wrapper, loader, val_loader, ckpt_path=resumed)
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory_advice(error, settings.batch_size)) from error
    return folder


def read_configs(settings: TrainSettings) -> tuple[RunConfigs, TrainingSection]:
    """Read and check every file; the mistakes of all are in the one ConfigError."""
    missing = [name for name in ("model_config", "dataset_config") if not getattr(settings, name)]
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ConfigError(f"{flags} missing: a run needs a model config and a dataset config (JSON files)")
    model = load(settings.model_config)
    problems: list[str] = []
    section = None
    checks: list[Callable[[Mapping[str, Any]], Any]] = [check_model_config, check_training_config]
    for check in checks:
        try:
            section = check(model)
        except ConfigError as error:
            problems += [f"{settings.model_config}: {problem}" for problem in error.problems]
    if problems or not isinstance(section, TrainingSection):
        raise ConfigError(problems)
    if not model.get("sample_size"):
        raise ConfigError(f"{settings.model_config}: sample_size: missing; training needs it")
    val = load(settings.val_dataset_config) if settings.val_dataset_config else None
    dataset = _with_path_lists(load(settings.dataset_config), settings)
    return RunConfigs(model, dataset, val), section


def build_model(settings: TrainSettings, model_config: dict[str, Any], resuming: bool) -> nn.Module:
    """The model, with the weights that the settings name."""
    top, part = check_model_config(model_config)
    model: nn.Module = part.build(sample_rate=top.sample_rate, model_type=top.model_type)
    if settings.pretrained_ckpt_path and not resuming:
        load_into(model, settings.pretrained_ckpt_path, ema=None)
    pretransform = getattr(model, "pretransform", None)
    if settings.remove_pretransform_weight_norm == "pre_load":
        remove_weight_norm_from_model(_needed(pretransform, "--remove-pretransform-weight-norm"))
    if settings.pretransform_ckpt_path and not resuming:
        load_into(_inner(_needed(pretransform, "--pretransform-ckpt-path")), settings.pretransform_ckpt_path, ema=None)
    elif pretransform is not None and not settings.pretrained_ckpt_path and not resuming:
        _warn_of_untrained(pretransform)
    if settings.remove_pretransform_weight_norm == "post_load":
        remove_weight_norm_from_model(_needed(pretransform, "--remove-pretransform-weight-norm"))
    return model


def create_trainer(
    settings: TrainSettings, configs: RunConfigs, section: TrainingSection, wrapper: TrainingModule, folder: Path
) -> pl.Trainer:
    """Lightning's trainer with our checkpoints, guards and demos."""
    devices, accelerator = _devices(settings)
    manual = not wrapper.automatic_optimization
    checkpoints = folder / "checkpoints"
    _set_checkpointing(wrapper, settings, accelerator)
    demo_loader = None
    if configs.val_dataset is not None:
        demo_loader = _loader(settings, configs.model, configs.val_dataset, shuffle=False)
    callbacks: list[pl.Callback | None] = [
        NonFiniteGuard(settings.nonfinite, checkpoints),  # type: ignore[arg-type]
        create_demo_callback_from_config(configs.model, demo_loader, folder / "demos"),
        ProgressBar(refresh_rate=(section.shared.tqdm or {}).get("refresh_rate", 1)),
        Checkpointing(checkpoints, settings.checkpoint_every, settings.save_top_k, configs.model),
        DryRun() if settings.dry_run else None,
    ]
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings, wrapper, devices),
        precision=_precision(settings, accelerator),  # type: ignore[arg-type]
        plugins=[AtomicCheckpointIO()],
        max_steps=1 if settings.dry_run else settings.max_steps,
        max_epochs=settings.max_epochs,
        accumulate_grad_batches=1 if manual else settings.accum_batches,
        gradient_clip_val=None if manual else settings.gradient_clip_val or None,
        limit_train_batches=_limit(settings),
        limit_val_batches=settings.limit_val_batches,
        val_check_interval=settings.val_every if settings.val_every > 0 else None,
        check_val_every_n_epoch=None if settings.val_every > 0 else 1,
        log_every_n_steps=1
        if settings.dry_run
        else (section.shared.logging or {}).get("log_every", settings.log_every),
        logger=create_logger(settings, folder) or False,
        callbacks=[callback for callback in callbacks if callback is not None],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _loader(
    settings: TrainSettings, model_config: Mapping[str, Any], dataset: dict[str, Any] | None, shuffle: bool
) -> Any:
    if dataset is None:
        return None
    workers = settings.num_workers if settings.num_workers >= 0 else min(6, os.cpu_count() or 1)
    return create_dataloader_from_config(
        dataset,
        batch_size=settings.batch_size,
        sample_size=model_config["sample_size"],
        sample_rate=model_config["sample_rate"],
        audio_channels=model_config.get("audio_channels", 2),
        num_workers=workers,
        shuffle=shuffle,
        seed=settings.seed,
    )


def _with_section(settings: TrainSettings, section: TrainingSection) -> TrainSettings:
    """The config's own `checkpoint` entries stand where the flags were left at their defaults."""
    given, plain = section.shared.checkpoint or {}, TrainSettings()
    changes: dict[str, Any] = {}
    if "every_n_train_steps" in given and settings.checkpoint_every == plain.checkpoint_every:
        changes["checkpoint_every"] = given["every_n_train_steps"]
    if "save_top_k" in given and settings.save_top_k == plain.save_top_k:
        changes["save_top_k"] = given["save_top_k"]
    return dataclasses.replace(settings, **changes)


def _with_path_lists(dataset: dict[str, Any], settings: TrainSettings) -> dict[str, Any]:
    for key in ("include_paths_file", "exclude_paths_file"):
        if getattr(settings, key):
            dataset = {**dataset, key: getattr(settings, key)}
    return dataset


def _checkpoint_to_resume(settings: TrainSettings) -> Path | None:
    if settings.ckpt_path:
        return Path(settings.ckpt_path)
    if not settings.recover:
        return None
    found = newest_whole_checkpoint(Path(settings.save_dir), settings.name)
    if found is None:
        logger.info(
            "--recover: no checkpoint of a run named %r under %s; starting anew", settings.name, settings.save_dir
        )
    else:
        logger.info("--recover: going on from %s", found)
    return found


def _run_folder(settings: TrainSettings, resumed: Path | None) -> Path:
    """A resumed run goes on in its own folder; processes of one run share the folder that the first one makes."""
    if resumed is not None and settings.recover:
        return resumed.parent.parent
    if world_size() == 1:
        return new_run_folder(Path(settings.save_dir), settings.name)
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    run_id = name if name != "none" else os.environ.get("SLURM_JOB_ID") or os.environ.get("MASTER_PORT", "0")
    folder = Path(settings.save_dir) / settings.name / f"run-{run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _devices(settings: TrainSettings) -> tuple[Any, str]:
    accelerator = settings.accelerator
    if accelerator == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        accelerator = "cpu"
    if settings.num_gpus > 0:
        return settings.num_gpus, "gpu"
    if settings.devices == "auto":
        local = os.environ.get("LOCAL_WORLD_SIZE")
        return (int(local) if local else 1 if accelerator == "cpu" else "auto"), accelerator
    if "," in settings.devices:
        return [int(index) for index in settings.devices.split(",") if index], accelerator
    return int(settings.devices), accelerator


def _strategy(settings: TrainSettings, wrapper: TrainingModule, devices: Any) -> Any:
    if settings.strategy == "deepspeed":
        from pytorch_lightning.strategies import DeepSpeedStrategy

        return DeepSpeedStrategy(stage=2, load_full_weights=True)
    several = settings.num_nodes > 1 or world_size() > 1 or devices not in (1, "1", "auto")
    several = several or (devices == "auto" and torch.cuda.device_count() > 1)
    # With two networks that train in turns, each step leaves the other's parameters without gradients.
    if settings.strategy in ("auto", "ddp") and several and not wrapper.automatic_optimization:
        return "ddp_find_unused_parameters_true"
    return settings.strategy


def _precision(settings: TrainSettings, accelerator: str) -> str:
    if settings.precision == "16":
        return "16-mixed" if accelerator != "cpu" else "bf16-mixed"
    if settings.precision != "auto":
        return settings.precision
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def _limit(settings: TrainSettings) -> int | float:
    if settings.num_train_samples > 0:
        return max(1, settings.num_train_samples // (settings.batch_size * world_size()))
    return settings.limit_train_batches


def _set_checkpointing(wrapper: nn.Module, settings: TrainSettings, accelerator: str) -> None:
    trained = sum(parameter.numel() for parameter in wrapper.parameters() if parameter.requires_grad)
    wanted = settings.checkpointing == "on"
    if settings.checkpointing == "auto":
        wanted = accelerator != "cpu" and trained > CHECKPOINTING_ABOVE
    for module in wrapper.modules():
        if isinstance(getattr(module, "checkpointing", None), bool):
            module.checkpointing = wanted  # type: ignore[assignment]
    logger.info("activations are %s in the backward pass", "recomputed" if wanted else "kept for use")


def _compile(wrapper: TrainingModule) -> None:
    for name in ("diffusion", "autoencoder", "model", "diffae"):
        network = getattr(wrapper, name, None)
        if isinstance(network, nn.Module):
            inner = getattr(network, "model", network)
            if isinstance(inner, nn.Module):
                inner.compile()
                return


def _needed(pretransform: Any, flag: str) -> Any:
    if pretransform is None:
        raise ConfigError(f"{flag} was given, but the model has no pretransform")
    return pretransform


def _inner(pretransform: Any) -> nn.Module:
    return getattr(pretransform, "model", pretransform)


def _warn_of_untrained(pretransform: nn.Module) -> None:
    if any(True for _ in pretransform.parameters()):
        logger.warning(
            "the pretransform has random weights: pass --pretransform-ckpt-path (or --pretrained-ckpt-path), or the model "
            "learns to make noise"
        )
