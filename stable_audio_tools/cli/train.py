"""`train`: train a model of any type."""

import argparse
from collections.abc import Sequence

from stable_audio_tools.cli.command import make_parser, run_command
from stable_audio_tools.cli.settings import add_flags, settings_from
from stable_audio_tools.training.settings import TrainSettings


def parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    made = make_parser(
        "train.py",
        "Train the model of one config on the data of another. Several GPUs or nodes: torchrun --nproc_per_node N "
        "train.py ..., or SLURM's srun. Ctrl-C stops; --recover goes on.",
    )
    add_flags(made, TrainSettings, argv)
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.training.run import fit

    fit(settings_from(arguments, TrainSettings))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: parser(argv), run, argv)
