"""`unwrap-model`: from a training checkpoint to a file that generates."""

import argparse
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.lora_choice import lora_choice


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "unwrap_model.py",
        "Write the model out of a training checkpoint (a file, or a DeepSpeed folder) as a file that loads everywhere, "
        "and load it back before calling it good. A checkpoint of train_lora.py holds an adapter alone: that is "
        "written as a .safetensors file, or with --merge-lora into the weights of its model.",
    )
    made.add_argument(
        "--ckpt-path",
        type=Path,
        required=True,
        metavar="CKPT",
        help="training checkpoint, or a run's folder: its newest",
    )
    made.add_argument(
        "--model-config", type=Path, metavar="JSON", help="model config; else the one inside the checkpoint"
    )
    made.add_argument("--name", default="exported_model", help="path of the new file, without its suffix")
    made.add_argument("--use-safetensors", action="store_true", help="write .safetensors instead of .ckpt")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="take the averaged weights; without any, that is an error")
    which.add_argument("--online", action="store_true", help="take the weights of the last step, not their average")
    made.add_argument("--half", action="store_true", help="write float16")
    made.add_argument(
        "--merge-lora",
        type=lora_choice,
        nargs="*",
        metavar="PATH[:STRENGTH]",
        help="write a model whose weights hold these adapters (after the checkpoint's own, where it is an adapter's)",
    )
    made.add_argument(
        "--base-ckpt-path", type=Path, metavar="FILE", help="weights of the model that the checkpoint's adapter is for"
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.ranks import is_rank_zero

    if not is_rank_zero():
        return 0
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.training.lora_checkpoint import adapter_in
    from stable_audio_tools.training.run_folder import checkpoint_at
    from stable_audio_tools.training.unwrap import unwrap, unwrap_adapter, unwrap_merged

    # Averaged weights where there are some: they are what the demos were made with.
    ema = True if arguments.ema else False if arguments.online else None
    checkpoint = checkpoint_at(arguments.ckpt_path)
    suffix = ".safetensors" if arguments.use_safetensors else ".ckpt"
    target = Path(f"{arguments.name}{suffix}")
    if arguments.merge_lora is not None:
        adapters = [(choice.path, choice.strength) for choice in arguments.merge_lora]
        unwrap_merged(
            checkpoint, target, adapters, arguments.base_ckpt_path, arguments.model_config, ema, arguments.half
        )
    elif arguments.base_ckpt_path is not None:
        raise ConfigError("--base-ckpt-path: needs --merge-lora, which puts adapters into those weights")
    elif (adapter := adapter_in(checkpoint, ema)) is not None:
        target = Path(f"{arguments.name}.safetensors")
        unwrap_adapter(adapter, target, arguments.half)
    else:
        unwrap(checkpoint, target, arguments.model_config, ema, half=arguments.half)
    print(f"wrote {target}")
    return 0


main = command(parser, run)
