"""The run of `train.py`: check everything, build, load, and fit."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from stable_audio_tools import configs
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError, ConfigError, UserError
from stable_audio_tools.core.ranks import is_rank_zero, rank, world_size
from stable_audio_tools.core.seeds import MAX_SEED, seed_everything
from stable_audio_tools.data.dataset import create_dataloader_from_config, load_dataset_config
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.data.loader import Batch, BatchLoader, Loader, SamePass, UnknownLength
from stable_audio_tools.latents.identity import require_same_autoencoder
from stable_audio_tools.models.autoencoders.weight_norm import remove_weight_norm_from_model
from stable_audio_tools.models.checkpoints import load_into, open_weights
from stable_audio_tools.models.compilation import compile_network
from stable_audio_tools.models.factory import check_model_config
from stable_audio_tools.training.callbacks.checkpointing import (
    is_reader_death,
    require_last_checkpoint,
    saved_on_the_way_out,
)
from stable_audio_tools.training.callbacks.guards import out_of_memory_advice, require_trainable
from stable_audio_tools.training.checks import wrong_kind
from stable_audio_tools.training.distributed import (
    config_digest,
    from_rank_zero,
    joined,
    require_same,
    require_same_data,
    together,
)
from stable_audio_tools.training.factory import (
    TrainingSection,
    check_training_config,
    create_training_wrapper_from_config,
)
from stable_audio_tools.training.loggers import log_settings, with_pulled_settings
from stable_audio_tools.training.lora_checkpoint import is_of_adapter
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run_folder import (
    checkpoint_mark,
    checkpoints_in,
    describe_run,
    new_run_folder,
    newest_whole_checkpoint,
)
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.trainer import create_trainer

logger = logging.getLogger(__name__)

EXAMPLE_CONFIG = Path(configs.__path__[0]) / "model_configs" / "autoencoders" / "tiny_autoencoder.json"
EXAMPLE_STEPS = 200


@dataclasses.dataclass(frozen=True)
class RunConfigs:
    """The config files of a run."""

    model: dict[str, Any]
    dataset: JsonObject
    val_dataset: JsonObject | None


class Recipe:
    """The steps in which kinds of run differ; this one trains the model itself."""

    def model_config(self, config: JsonObject) -> JsonObject:
        """Return the config that is trained and recorded."""
        return config

    def build(self, settings: TrainSettings, config: JsonObject, resumed: Path | None) -> nn.Module:
        """Build the model, with `requires_grad` at what is trained; `resumed` is the checkpoint to load afterwards."""
        if resumed is not None and is_of_adapter(resumed):
            raise CheckpointError(f"{resumed}: holds the training of an adapter; resume it with train_lora.py")
        return build_model(settings, config, resuming=resumed is not None)

    def prepare(self, wrapper: TrainingModule, folder: Path) -> list[pl.Callback]:
        """Return the callbacks of this kind of run."""
        return []

    def next_command(self, folder: Path, checkpoint: Path) -> str:
        """Return the command to use the newest checkpoint with."""
        return f"python unwrap_model.py --ckpt-path {checkpoint} --name {folder / 'model'} --use-safetensors"


def fit(settings: TrainSettings, recipe: Recipe | None = None) -> Path:
    """Train in as many processes as the settings ask for, and return the run folder."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    settings = with_pulled_settings(settings)
    with joined(settings):
        return _fit(settings, recipe or Recipe())


def _fit(settings: TrainSettings, recipe: Recipe) -> Path:
    with together():
        if not settings.model_config and not settings.dataset_config:
            settings = with_example(settings)
    with together():
        files, section = read_configs(settings, recipe)
        settings = _with_section(settings, section)
    require_same(
        {"model config": config_digest(files.model), "--seed": settings.seed, "--batch-size": settings.batch_size},
        "start all processes with the same files and flags",
    )
    resumed = _checkpoint_to_resume(settings)
    folder = _run_folder(settings, resumed)
    with together():
        if is_rank_zero():
            describe_run(
                folder,
                dataclasses.asdict(settings),
                {"model_config": files.model, "dataset_config": files.dataset, "val_dataset_config": files.val_dataset},
            )
        seed_everything(settings.seed)
        model = recipe.build(settings, files.model, resumed)
        if resumed is None:
            for dataset in (files.dataset, files.val_dataset):
                require_same_autoencoder(model, dataset)
        wrapper = create_training_wrapper_from_config(
            files.model, model, settings.accum_batches, settings.gradient_clip_val
        )
        require_trainable(wrapper)
        # Rank zero reads the batch of the demos alone: this loader must not wait for other processes.
        demo_loader = _loader(settings, files.model, files.val_dataset, shuffle=False, alone=True)
        more = recipe.prepare(wrapper, folder)
        trainer = create_trainer(settings, files.model, section, wrapper, folder, demo_loader, more)
        log_settings(trainer.logger, {**dataclasses.asdict(settings), "model_config": files.model})
        # Each process draws different noise; the weights above are the same in all.
        seed_everything((settings.seed + rank()) % MAX_SEED)
        loader = _loader(settings, files.model, files.dataset, shuffle=True)
        assert loader is not None
        held_out = _loader(settings, files.model, files.val_dataset, shuffle=False)
        if settings.compile:
            compile_network(wrapper.exported)
    require_same_data(loader.inventories(), settings.dataset_config)
    if held_out is not None:
        require_same_data(held_out.inventories(), settings.val_dataset_config)
    batches: Iterable[Batch] = loader
    if isinstance(loader, Loader) and trainer.world_size == 1 and settings.limit_train_batches == 1.0:
        batches = UnknownLength(loader)
    logger.info("run folder: %s", folder)
    try:
        trainer.fit(wrapper, batches, None if held_out is None else SamePass(held_out), ckpt_path=resumed)
    except ValueError as error:
        if resumed is None or "parameter group" not in str(error):
            raise
        raise UserError(
            f"{resumed}: its optimisers do not fit what this config trains ({error}); --pretrained-ckpt-path starts a "
            "new run from its weights"
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory_advice(error, settings.batch_size)) from error
    except RuntimeError as error:
        if not is_reader_death(error):
            raise
        if saved_on_the_way_out(trainer):
            return folder
        raise UserError(
            f"a process that reads data died ({str(error).splitlines()[0]}); --num-workers 0 shows where, --recover "
            "goes on from the newest checkpoint"
        ) from error
    require_last_checkpoint(trainer)
    saved = checkpoints_in(folder / "checkpoints")
    if saved and is_rank_zero():
        logger.info("step %d: %s; next: %s", trainer.global_step, saved[-1], recipe.next_command(folder, saved[-1]))
    return folder


def with_example(settings: TrainSettings) -> TrainSettings:
    """Return the settings of a run without configs: the tiny autoencoder on the example clips."""
    clips = Path(settings.save_dir) / "example_clips"
    dataset = clips / "dataset.json"
    if is_rank_zero():
        write_example_clips(clips)
        save({"dataset_type": "audio_dir", "datasets": [{"id": "example", "path": str(clips)}]}, dataset)
    logger.info("no --model-config and no --dataset-config: training %s on example clips", EXAMPLE_CONFIG.name)
    steps = settings.max_steps if settings.max_steps > 0 else EXAMPLE_STEPS
    return dataclasses.replace(settings, model_config=str(EXAMPLE_CONFIG), dataset_config=str(dataset), max_steps=steps)


def read_configs(settings: TrainSettings, recipe: Recipe) -> tuple[RunConfigs, TrainingSection]:
    """Read and check every file; the mistakes of all are in the one ConfigError."""
    missing = [name for name in ("model_config", "dataset_config") if not getattr(settings, name)]
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ConfigError(f"{flags} missing: a run needs a model config and a dataset config (JSON files)")
    model = recipe.model_config(load(settings.model_config))
    problems: list[str] = []
    section = None
    checks: list[Callable[[JsonObject], object]] = [check_model_config, check_training_config]
    for check in checks:
        try:
            section = check(model)
        except ConfigError as error:
            problems += [f"{settings.model_config}: {problem}" for problem in error.problems]
    if problems or not isinstance(section, TrainingSection):
        raise ConfigError(problems)
    if not model.get("sample_size"):
        raise ConfigError(f"{settings.model_config}: sample_size: missing; training needs it")
    val = load_dataset_config(settings.val_dataset_config) if settings.val_dataset_config else None
    dataset = load_dataset_config(settings.dataset_config)
    lists = {"include_paths_file": settings.include_paths_file, "exclude_paths_file": settings.exclude_paths_file}
    dataset |= {key: path for key, path in lists.items() if path}
    for path, data in ((settings.dataset_config, dataset), (settings.val_dataset_config, val)):
        if data is not None and model["model"].get("pretransform") is not None:
            problems += wrong_kind(f"{settings.model_config}: training.pre_encoded", section, path, data)
    if problems:
        raise ConfigError(problems)
    return RunConfigs(model, dataset, val), section


def build_model(settings: TrainSettings, model_config: JsonObject, resuming: bool) -> nn.Module:
    """Build the model, with the weights that the settings name."""
    top, part = check_model_config(model_config)
    model: nn.Module = part.build(sample_rate=top.sample_rate, model_type=top.model_type)
    if settings.pretrained_ckpt_path and not resuming:
        load_into(model, settings.pretrained_ckpt_path, partial=settings.pretrained_partial, ema=None)
    pretransform = getattr(model, "pretransform", None)
    if settings.remove_pretransform_weight_norm == "pre_load":
        remove_weight_norm_from_model(_needed(pretransform, "--remove-pretransform-weight-norm"))
    if settings.pretransform_ckpt_path and not resuming:
        codec = _needed(pretransform, "--pretransform-ckpt-path")
        load_into(getattr(codec, "model", codec), settings.pretransform_ckpt_path, ema=None)
    elif (
        not settings.pretrained_ckpt_path
        and not resuming
        and isinstance(pretransform, nn.Module)
        and any(True for _ in pretransform.parameters())
    ):
        logger.warning(
            "the pretransform has random weights: pass --pretransform-ckpt-path (or --pretrained-ckpt-path), or the "
            "model learns to generate noise"
        )
    if settings.remove_pretransform_weight_norm == "post_load":
        remove_weight_norm_from_model(_needed(pretransform, "--remove-pretransform-weight-norm"))
    return model


def _loader(
    settings: TrainSettings,
    model_config: JsonObject,
    dataset: JsonObject | None,
    shuffle: bool,
    alone: bool = False,
) -> BatchLoader | None:
    if dataset is None:
        return None
    if not shuffle:  # held-out data: every item counts
        dataset = {"drop_last": False, **dataset}
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
        rank=0 if alone else None,
        world_size=1 if alone else None,
    )


def _with_section(settings: TrainSettings, section: TrainingSection) -> TrainSettings:
    """Apply the `checkpoint` section of the config if the flags have their defaults."""
    given, plain = section.shared.checkpoint or {}, TrainSettings()
    changes: JsonObject = {}
    if "every_n_train_steps" in given and settings.checkpoint_every == plain.checkpoint_every:
        changes["checkpoint_every"] = given["every_n_train_steps"]
    if "save_top_k" in given and settings.save_top_k == plain.save_top_k:
        changes["save_top_k"] = given["save_top_k"]
    return dataclasses.replace(settings, **changes)


def _checkpoint_to_resume(settings: TrainSettings) -> Path | None:
    """Return the checkpoint that rank zero chooses, after every process has found the same one."""
    with together():
        chosen = _named_checkpoint(settings) if settings.ckpt_path else None
        if settings.recover and chosen is None and is_rank_zero():
            chosen = _newest_checkpoint(settings)
    chosen = from_rank_zero(chosen)
    if chosen is None or world_size() == 1:
        return chosen
    with together():
        if not chosen.exists():
            raise CheckpointError(
                f"{chosen}: not found here, but rank 0 resumes from it; keep --save-dir on storage that all machines "
                "share, or copy the checkpoint to each"
            )
        mark = checkpoint_mark(chosen)
    require_same({str(chosen): mark}, "all machines need the same checkpoint; copy that of rank 0 to the others")
    return chosen


def _named_checkpoint(settings: TrainSettings) -> Path:
    if not open_weights(settings.ckpt_path).is_training:
        raise CheckpointError(
            f"--ckpt-path {settings.ckpt_path}: holds weights, not a run to resume; start a new run from them with "
            "--pretrained-ckpt-path (the whole model) or --pretransform-ckpt-path (the autoencoder inside it)"
        )
    return Path(settings.ckpt_path)


def _newest_checkpoint(settings: TrainSettings) -> Path | None:
    newest = newest_whole_checkpoint(Path(settings.save_dir), settings.name)
    if newest is None:
        logger.info(
            "--recover: no checkpoint of a run named %r under %s; starting a new run", settings.name, settings.save_dir
        )
    else:
        logger.info("--recover: continuing from %s", newest)
    return newest


def _run_folder(settings: TrainSettings, resumed: Path | None) -> Path:
    """Return the folder of a recovered run, or one that rank zero creates for all processes."""
    with together():
        folder = Path()
        if resumed is not None and settings.recover:
            folder = resumed.parent.parent
        elif is_rank_zero():
            folder = new_run_folder(Path(settings.save_dir), settings.name)
    folder = from_rank_zero(folder)
    folder.mkdir(parents=True, exist_ok=True)  # where machines do not share the folder
    return folder


def _needed(pretransform: object, flag: str) -> nn.Module:
    if not isinstance(pretransform, nn.Module):
        raise ConfigError(f"{flag} was given, but the model has no pretransform")
    return pretransform
