"""`train-lora`: train a low-rank adapter of a model."""

import argparse
from collections.abc import Sequence

from stable_audio_tools.cli.command import make_parser, run_command
from stable_audio_tools.cli.settings import add_flags, settings_from
from stable_audio_tools.training.lora_settings import LoraSettings


def parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    made = make_parser(
        "train_lora.py",
        "Train a small adapter of the model that --pretrained-ckpt-path holds, whose own weights stay as they are. The "
        "`lora` section of the model config says which layers and how; flags come before it. Adapter files appear in "
        "the run's folder under adapters/. Ctrl-C stops; --recover goes on.",
    )
    add_flags(made, LoraSettings, argv)
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.training.lora import fit_lora

    fit_lora(settings_from(arguments, LoraSettings))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: parser(argv), run, argv)
