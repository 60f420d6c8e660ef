"""The settings of `train.py` and `train_lora.py`, from which flags, `defaults.ini` and the run folder follow."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.settings import Settings, option


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Settings of `train`."""

    name: str = option("stable_audio_tools", "name of the run: its folder, and the project of wandb or comet")
    project: str = option("", "project of wandb or comet, where it is not the run's name")
    model_config: str = option("", "model config (JSON); empty: the tiny example")
    dataset_config: str = option("", "dataset config (JSON); empty: the example clips")
    val_dataset_config: str = option("", "held-out dataset config (JSON); empty: no validation")
    save_dir: str = option("runs", "folder of the run folders")
    batch_size: int = option(4, "items per step and process", ge=1)
    num_workers: int = option(-1, "processes that read data; -1: one per core, at most 6", ge=-1)
    seed: int = option(42, "random seed", ge=0, le=2**32 - 1)
    max_steps: int = option(-1, "stop after this many optimiser steps; -1: run until stopped", ge=-1)
    max_epochs: int = option(-1, "stop after this many passes over the data; -1: run until stopped", ge=-1)
    limit_train_batches: int | float = option(1.0, "batches (whole number) or share (fraction) of each epoch", ge=0)
    limit_val_batches: int | float = option(1.0, "batches (whole number) or share (fraction) of each validation", ge=0)
    num_train_samples: int = option(0, "items per epoch over all processes; 0: all of them", ge=0)
    accelerator: str = option("auto", "cpu, gpu, mps or auto")
    devices: str = option("auto", "how many devices, or which ones (0,1); auto: all")
    num_gpus: int = option(0, "how many GPUs of each node; 0: as --devices says", ge=0)
    num_nodes: int = option(1, "machines that take part", ge=1)
    strategy: str = option(
        "auto", "auto, ddp, ddp_find_unused_parameters_true, fsdp, deepspeed, or another of Lightning's"
    )
    precision: str = option("auto", "auto, 32, 16-mixed, bf16-mixed, 16 (as 16-mixed), or another of Lightning's")
    compile: bool = option(False, "compile the network with torch.compile")
    checkpointing: str = option(
        "auto", "recompute activations in the backward pass to save memory", choices=("auto", "on", "off")
    )
    accum_batches: int = option(1, "batches whose gradients are summed before a step", ge=1)
    gradient_clip_val: float = option(0.0, "largest gradient norm; 0: no clipping", ge=0)
    ckpt_path: str = option("", "training checkpoint to resume: weights, optimiser, step, data position")
    pretrained_ckpt_path: str = option("", "weights to start a new run from: the whole model")
    pretrained_partial: bool = option(
        False, "take from --pretrained-ckpt-path what fits by name and shape, and leave the rest as it is"
    )
    pretransform_ckpt_path: str = option("", "weights of the pretransform (the autoencoder inside the model)")
    remove_pretransform_weight_norm: str = option(
        "",
        "fold weight norm of the pretransform, before or after its weights load",
        choices=("", "pre_load", "post_load"),
    )
    recover: bool = option(False, "resume the newest run of this name, where there is one")
    checkpoint_every: int = option(10000, "steps between checkpoints", ge=1)
    save_top_k: int = option(-1, "how many checkpoints to keep; -1: all", ge=-1)
    val_every: int = option(-1, "steps between validations; -1: one at the end of each epoch", ge=-1)
    log_every: int = option(10, "steps between logged values", ge=1)
    logger: str = option("tensorboard", "where metrics go", choices=("tensorboard", "wandb", "comet", "csv", "none"))
    watch: str = option(
        "",
        "histograms to log every --log-every steps (tensorboard, wandb); empty: none",
        choices=("", "gradients", "parameters", "all"),
    )
    wandb_config: str = option("", "URL of a wandb run whose settings are used where the flags are silent")
    profile: int = option(0, "steps to write a trace of, into the run folder; 0: none", ge=0)
    nonfinite: str = option("skip", "on a loss or gradient that is not finite", choices=("skip", "rollback", "stop"))
    include_paths_file: str = option("", "train only on the files that this list names")
    exclude_paths_file: str = option("", "leave out the files that this list names")
    check_copies: str = option("", "index of the training set (`dedup index`) to look demos up in")
    dry_run: bool = option(False, "build everything, take one step, make one demo, print memory, and stop")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        indices = [index.strip() for index in self.devices.split(",") if index.strip()]
        if self.devices not in ("auto", "-1") and not (indices and all(index.isdigit() for index in indices)):
            yield f"--devices: expected auto, a number, or numbers such as 0,1; got {self.devices!r}"
        if self.devices.strip() == "0":
            yield "--devices: expected at least 1; the first GPU alone is '0,'"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Settings):
    """Settings of `finetune`."""

    folder: Path = option(help="folder of recordings, subfolders included", positional=True, metavar="FOLDER")
    model: str = option(
        help="model to adapt: a weight file that stores its config, a folder with model_config.json, or a name on "
        "huggingface.co",
        metavar="NAME",
    )
    output_dir: Path = option(Path("finetune"), "folder for clips, captions, configs, runs and the page", metavar="DIR")
    prepare_only: bool = option(False, "write clips and captions.csv, to edit the prompts, and stop")
    rank: int = option(16, "width of the adapter", ge=1)
    steps: int = option(0, "optimiser steps; 0: 100 for each batch of the clips, from 200 to 2000", ge=0)
    memory_gb: float = option(0.0, "memory to plan for, in GiB; 0: that of the GPU, or of the machine", ge=0)
    num_demos: int = option(3, "prompts to listen to before and after", ge=1)

    @property
    def memory(self) -> float:
        """The memory to plan for, in bytes; 0 if not set."""
        return self.memory_gb * 2**30


ADAPTER_TYPES = (
    "",
    "lora",
    "dora",
    "dora-rows",
    "dora-cols",
    "bora",
    "lora-xs",
    "dora-rows-xs",
    "dora-cols-xs",
    "bora-xs",
    "loha",
    "lokr",
)
BASE_PRECISIONS = ("", "fp32", "bf16", "fp16", "int8", "nf4")


@dataclasses.dataclass(frozen=True)
class LoraSettings(TrainSettings):
    """Settings of `lora train`; they come before the `lora` section of the config."""

    lora_ckpt_path: str = option("", "adapter file to go on from, in a new run")
    rank: int = option(0, "width of the adapter; 0: as the config says, else 16", ge=0)
    alpha: float = option(0.0, "the change of a weight is alpha / rank * B A; 0: as the config says, else the rank")
    adapter_type: str = option("", "kind of adapter; empty: as the config says, else lora", choices=ADAPTER_TYPES)
    include: tuple[str, ...] = option((), "patterns of the layers to adapt, such as self_attn cross_attn")
    exclude: tuple[str, ...] = option((), "patterns of layers to leave alone")
    base_precision: str = option(
        "", "type of the frozen weights; int8 and nf4 need bitsandbytes", choices=BASE_PRECISIONS
    )
    adapter_every: int = option(500, "steps between adapter files; there is one at the end in any case", ge=1)
    keep_adapters: int = option(-1, "how many adapter files to keep; -1: all", ge=-1)
    trigger_text: str = option("", "words that trigger the learnt style, recorded in the adapter files")

    def lora_section(self, section: JsonObject | None) -> JsonObject:
        """Return the `lora` section of the config with the values of the flags."""
        changed = dict(section or {})
        if self.include:
            changed.pop("component_whitelist", None)
        if self.adapter_type:
            changed.pop("weight_decompose", None)
        flags = {
            "rank": self.rank,
            "alpha": self.alpha,
            "adapter_type": self.adapter_type,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "base_precision": self.base_precision,
        }
        return {**changed, **{key: value for key, value in flags.items() if value}}
