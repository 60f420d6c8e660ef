"""`check`: is this config right, and what does it build?"""

import argparse
import json
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "stable-audio-tools check",
        "Check a model config, a dataset config or both, the files they name and their training section, and print "
        "what they build. Exit status 2 with one line per mistake when something is wrong.",
    )
    made.add_argument("model", type=Path, metavar="CONFIG.json", help="model or dataset config")
    made.add_argument("dataset", type=Path, nargs="?", metavar="CONFIG.json", help="the other of the two")
    made.add_argument("--json", action="store_true", help="print the summary as JSON")
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.training.checks import check_files

    summary = check_files([path for path in (arguments.model, arguments.dataset) if path is not None])
    print(json.dumps(summary, indent=2) if arguments.json else _table(summary))
    return 0


def _table(summary: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _table(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:,}' if isinstance(value, int) else value}")
    return "\n".join(lines)


main = command(parser, run)
