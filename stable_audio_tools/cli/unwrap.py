"""`unwrap`: from a training checkpoint to a file that generates."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice


@dataclass(frozen=True, kw_only=True)
class UnwrapSettings(Settings):
    """Settings of `unwrap`."""

    ckpt_path: Path = option(help="training checkpoint, or a run's folder: its newest", metavar="CKPT")
    model_config: Path | None = option(None, "model config; else the one inside the checkpoint", metavar="JSON")
    name: str = option("exported_model", "path of the new file, without its suffix")
    use_safetensors: bool = option(False, "write .safetensors instead of .ckpt")
    ema: bool = option(False, "take the averaged weights; without any, that is an error")
    online: bool = option(False, "take the weights of the last step, not their average")
    half: bool = option(False, "write float16")
    merge_lora: tuple[LoraChoice, ...] | None = option(
        None,
        "write a model whose weights hold these adapters (after the checkpoint's own, where it is an adapter's)",
        metavar="PATH[:STRENGTH]",
        may_be_empty=True,
        parse=lora_choice,
    )
    base_ckpt_path: Path | None = option(
        None, "weights of the model that the checkpoint's adapter is for", metavar="FILE"
    )

    def problems(self) -> Iterable[str]:
        if self.ema and self.online:
            yield "--online: cannot be given together with --ema; give one of them"
        if self.base_ckpt_path is not None and self.merge_lora is None:
            yield "--base-ckpt-path: needs --merge-lora, which puts adapters into those weights"


def run(settings: UnwrapSettings) -> None:
    from stable_audio_tools.core.ranks import is_rank_zero

    if not is_rank_zero():
        return
    from stable_audio_tools.training.lora_checkpoint import adapter_in
    from stable_audio_tools.training.run_folder import checkpoint_at
    from stable_audio_tools.training.unwrap import unwrap, unwrap_adapter, unwrap_merged

    # If neither flag is given, averaged weights are taken if there are any: the demos were made with them.
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


main = Command(
    UnwrapSettings,
    run,
    "Write the model out of a training checkpoint (a file, or a DeepSpeed folder) as a file that loads everywhere, "
    "and load it back before calling it good. A checkpoint of train_lora.py holds an adapter alone: that is "
    "written as a .safetensors file, or with --merge-lora into the weights of its model.",
)
