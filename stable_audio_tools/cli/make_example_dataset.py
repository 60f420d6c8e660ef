"""`make-example-dataset`: short synthetic clips with captions."""

import argparse
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "stable-audio-tools make-example-dataset",
        "Write short synthetic clips of drums, bass, chords, rain and bells, with a caption beside each (.json) and a "
        "table of all (metadata.jsonl). The same arguments give the same files.",
    )
    made.add_argument("folder", type=Path, nargs="?", default=Path("example/clips"), help="where to write")
    made.add_argument("--per-class", type=int, default=6, metavar="N", help="clips of each kind of sound")
    made.add_argument("--seed", type=int, default=0, metavar="SEED", help="random seed")
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.data.example_clips import write_example_clips

    paths = write_example_clips(arguments.folder, arguments.per_class, arguments.seed)
    print(f"wrote {len(paths)} clips to {arguments.folder}")
    return 0


main = command(parser, run)
