"""`unwrap-model`: from a training checkpoint to a file that generates."""

import argparse
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "unwrap_model.py",
        "Write the model out of a training checkpoint (a file, or a DeepSpeed folder) as a file that loads everywhere, "
        "and load it back before calling it good.",
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
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.system.ranks import is_rank_zero

    if not is_rank_zero():
        return 0
    from stable_audio_tools.training.run_folder import checkpoint_at
    from stable_audio_tools.training.unwrap import unwrap

    # Averaged weights where there are some: they are what the demos were made with.
    ema = True if arguments.ema else False if arguments.online else None
    suffix = ".safetensors" if arguments.use_safetensors else ".ckpt"
    target = Path(f"{arguments.name}{suffix}")
    unwrap(checkpoint_at(arguments.ckpt_path), target, arguments.model_config, ema, half=arguments.half)
    print(f"wrote {target}")
    return 0


main = command(parser, run)
