"""`check-data`: what is wrong with a dataset, before hours are spent on it."""

import argparse
import json
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "stable-audio-tools check-data",
        "Decode every file of a dataset and tell what is wrong: unreadable, silent, clipped or short files, odd rates "
        "and channels, missing captions, exact duplicates. Exit status 1 when something is.",
    )
    made.add_argument("dataset", type=Path, metavar="DATASET.json", help="dataset config")
    made.add_argument(
        "--against",
        type=Path,
        metavar="JSON",
        help="another split, such as validation, that must share no audio with it",
    )
    made.add_argument(
        "--model-config", type=Path, metavar="JSON", help="tell files below the sample rate of this model"
    )
    made.add_argument(
        "--quarantine", type=Path, metavar="FILE", help="write a list of useless files, to leave them out"
    )
    made.add_argument(
        "--num-workers", type=int, metavar="N", help="files to decode at once; one for each CPU if left out"
    )
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.config import load
    from stable_audio_tools.core.progress import progress_bar
    from stable_audio_tools.data.checks import check_dataset, table

    rate = load(arguments.model_config).get("sample_rate") if arguments.model_config else None
    with progress_bar("decoding", None) as show:
        report = check_dataset(
            load(arguments.dataset),
            against=load(arguments.against) if arguments.against else None,
            sample_rate=rate,
            workers=arguments.num_workers,
            progress=show,
        )
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else table(report))
    if arguments.quarantine is not None:
        count = report.write_quarantine(arguments.quarantine)
        if not arguments.json:
            print(f"wrote {arguments.quarantine}: {count} files; name it as quarantine_file in the dataset config")
    return 0 if report.ok else 1


main = command(parser, run)
