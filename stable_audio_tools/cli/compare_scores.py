"""`compare-scores`: result files side by side, where they were measured alike."""

import argparse
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "stable-audio-tools compare-scores",
        "Print the scores of several result files (scores.json) side by side. Scores of different embedders, weights, "
        "windows, references or samplers are not comparable, and are refused.",
    )
    made.add_argument("results", type=Path, nargs="+", metavar="JSON", help="result files")
    return made


def run(arguments: argparse.Namespace) -> None:
    from stable_audio_tools.evaluation.results import as_table, group_comparable, read_results

    named = [
        (f"{path}: {result.subject['name']}", result) for path in arguments.results for result in read_results(path)
    ]
    tables = []
    for title, group in group_comparable(named).items():
        table = as_table([{"result": name, **result.scores} for name, result in group])
        tables.append(f"{title}\n{table}" if title else table)
    print("\n\n".join(tables))


main = command(parser, run)
