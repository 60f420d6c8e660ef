"""`train`, `lora train`, `finetune`, and `unwrap`, which turns a training checkpoint into a file that generates."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice
from stable_audio_tools.training.settings import FinetuneSettings, LoraSettings, TrainSettings


def run(settings: TrainSettings) -> None:
    from stable_audio_tools.training.run import fit

    fit(settings)


def run_lora(settings: LoraSettings) -> None:
    from stable_audio_tools.training.lora import fit_lora

    fit_lora(settings)


main = Command(
    TrainSettings,
    run,
    "Train the model of one config on the data of another. Several GPUs or nodes: torchrun --nproc_per_node N "
    "train.py ..., or SLURM's srun. Ctrl-C stops; --recover continues.",
    takes_ini=True,
)

train_lora = Command(
    LoraSettings,
    run_lora,
    "Train a low-rank adapter of the model in --pretrained-ckpt-path, whose weights stay frozen. The `lora` section of "
    "the model config selects layers and options; flags override it. Adapter files are written to adapters/ in the "
    "run's folder. Ctrl-C stops; --recover continues.",
    takes_ini=True,
)


def run_finetune(settings: FinetuneSettings) -> None:
    from stable_audio_tools.training.finetune import finetune

    written = finetune(settings)
    advice = "edit its prompts, then run again without --prepare-only" if settings.prepare_only else "open it to listen"
    print(f"wrote {written}: {advice}")


finetune = Command(
    FinetuneSettings,
    run_finetune,
    "Train an adapter on a folder of recordings: cut them into clips, write prompts, encode latents, choose settings "
    "for the memory, train, and write a page with audio before and after. All configs are written, for later runs of "
    "train_lora.py.",
)


# ------------------------------------------------------------------ unwrap


@dataclass(frozen=True, kw_only=True)
class UnwrapSettings(Settings):
    """Settings of `unwrap`."""

    ckpt_path: Path = option(help="training checkpoint, or a run folder, whose newest is used", metavar="CKPT")
    model_config: Path | None = option(None, "model config (default: the one in the checkpoint)", metavar="JSON")
    name: str = option("exported_model", "path of the new file, without suffix")
    use_safetensors: bool = option(False, "write .safetensors instead of .ckpt")
    ema: bool = option(False, "use the averaged weights; an error if there are none")
    online: bool = option(False, "use the weights of the last step, not the averaged ones")
    half: bool = option(False, "write float16")
    merge_lora: tuple[LoraChoice, ...] | None = option(
        None,
        "merge these adapters into the weights, after that of the checkpoint if it contains one",
        metavar="PATH[:STRENGTH]",
        may_be_empty=True,
        parse=lora_choice,
    )
    base_ckpt_path: Path | None = option(None, "weights of the base model of the checkpoint's adapter", metavar="FILE")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.ema and self.online:
            yield "--online: cannot be given together with --ema; give one of them"
        if self.base_ckpt_path is not None and self.merge_lora is None:
            yield "--base-ckpt-path: needs --merge-lora, which merges adapters into these weights"


def run_unwrap(settings: UnwrapSettings) -> None:
    from stable_audio_tools.core.ranks import is_rank_zero

    if not is_rank_zero():
        return
    from stable_audio_tools.training.lora_checkpoint import adapter_in
    from stable_audio_tools.training.run_folder import checkpoint_at
    from stable_audio_tools.training.unwrap import unwrap, unwrap_adapter, unwrap_merged

    # By default averaged weights are used if there are any, because the demos use them too.
    ema = True if settings.ema else False if settings.online else None
    checkpoint = checkpoint_at(settings.ckpt_path)
    target = Path(f"{settings.name}{'.safetensors' if settings.use_safetensors else '.ckpt'}")
    if settings.merge_lora is not None:
        adapters = [(choice.path, choice.strength) for choice in settings.merge_lora]
        unwrap_merged(checkpoint, target, adapters, settings.base_ckpt_path, settings.model_config, ema, settings.half)
    elif (adapter := adapter_in(checkpoint, ema)) is not None:
        target = Path(f"{settings.name}.safetensors")
        unwrap_adapter(adapter, target, settings.half)
    else:
        unwrap(checkpoint, target, settings.model_config, ema, half=settings.half)
    print(f"wrote {target}")


unwrap = Command(
    UnwrapSettings,
    run_unwrap,
    "Write the model of a training checkpoint (a file, or a DeepSpeed folder) to a file for generation, and verify "
    "that it loads. A checkpoint of train_lora.py contains only an adapter, which is written as a .safetensors file "
    "or, with --merge-lora, merged into the weights of its model.",
)
