"""Everything that `train.py` can be told, with its default; flags, `defaults.ini` and the run folder follow this."""

import dataclasses
from typing import Any


def setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    name: str = setting("stable_audio_tools", "name of the run: its folder, and the project of wandb or comet")
    project: str = setting("", "project of wandb or comet, where it is not the run's name")
    model_config: str = setting("", "model config (JSON); empty: the tiny example")
    dataset_config: str = setting("", "dataset config (JSON); empty: the example clips")
    val_dataset_config: str = setting("", "held-out dataset config (JSON); empty: no validation")
    save_dir: str = setting("runs", "folder that run folders are made in")
    batch_size: int = setting(4, "items per step and process")
    num_workers: int = setting(-1, "processes that read data; -1: one per core, at most 6")
    seed: int = setting(42, "random seed")
    max_steps: int = setting(-1, "stop after this many optimiser steps; -1: run until stopped")
    max_epochs: int = setting(-1, "stop after this many passes over the data; -1: run until stopped")
    limit_train_batches: int | float = setting(1.0, "batches (whole number) or share (fraction) of each epoch")
    limit_val_batches: int | float = setting(1.0, "batches (whole number) or share (fraction) of each validation")
    num_train_samples: int = setting(0, "items per epoch over all processes; 0: all of them")
    accelerator: str = setting("auto", "cpu, gpu, mps or auto")
    devices: str = setting("auto", "how many devices, or which ones (0,1); auto: all")
    num_gpus: int = setting(0, "how many GPUs of each node; 0: as --devices says")
    num_nodes: int = setting(1, "machines that take part")
    strategy: str = setting(
        "auto", "auto, ddp, ddp_find_unused_parameters_true, fsdp, deepspeed, or another of Lightning's"
    )
    precision: str = setting("auto", "auto, 32, 16-mixed, bf16-mixed, 16 (as 16-mixed), or another of Lightning's")
    compile: bool = setting(False, "compile the network with torch.compile")
    checkpointing: str = setting(
        "auto", "recompute activations in the backward pass to save memory", ("auto", "on", "off")
    )
    accum_batches: int = setting(1, "batches whose gradients are summed before a step")
    gradient_clip_val: float = setting(0.0, "largest gradient norm; 0: no clipping")
    ckpt_path: str = setting("", "training checkpoint to resume: weights, optimiser, step, data position")
    pretrained_ckpt_path: str = setting("", "weights to start a new run from: the whole model")
    pretrained_partial: bool = setting(
        False, "take from --pretrained-ckpt-path what fits by name and shape, and leave the rest as it is"
    )
    pretransform_ckpt_path: str = setting("", "weights of the pretransform (the autoencoder inside the model)")
    remove_pretransform_weight_norm: str = setting(
        "", "fold weight norm of the pretransform, before or after its weights load", ("", "pre_load", "post_load")
    )
    recover: bool = setting(False, "resume the newest run of this name, where there is one")
    checkpoint_every: int = setting(10000, "steps between checkpoints")
    save_top_k: int = setting(-1, "how many checkpoints to keep; -1: all")
    val_every: int = setting(-1, "steps between validations; -1: one at the end of each epoch")
    log_every: int = setting(10, "steps between logged values")
    logger: str = setting("tensorboard", "where metrics go", ("tensorboard", "wandb", "comet", "csv", "none"))
    wandb_config: str = setting("", "URL of a wandb run whose settings are pulled")
    nonfinite: str = setting("skip", "on a loss or gradient that is not finite", ("skip", "rollback", "stop"))
    include_paths_file: str = setting("", "train only on the files that this list names")
    exclude_paths_file: str = setting("", "leave out the files that this list names")
    dry_run: bool = setting(False, "build everything, take one step, make one demo, print memory, and stop")
