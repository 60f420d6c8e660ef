"""`check`: is this config right, and what does it build?"""

import argparse
import json
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "stable-audio-tools check",
        "Check a model config, and optionally a dataset config, and print what they build. Exit status 2 with one line "
        "per mistake when something is wrong.",
    )
    made.add_argument("model", type=Path, metavar="MODEL.json", help="model config")
    made.add_argument("dataset", type=Path, nargs="?", metavar="DATASET.json", help="dataset config")
    made.add_argument("--json", action="store_true", help="print the summary as JSON")
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.models.summary import summarise_model_config

    problems: list[str] = []
    summary: dict[str, Any] = {}
    for path, describe in ((arguments.model, summarise_model_config), (arguments.dataset, _describe_dataset)):
        if path is None:
            continue
        try:
            summary.update(describe(path))
        except ConfigError as error:
            problems += [
                problem if problem.startswith(str(path)) else f"{path}: {problem}" for problem in error.problems
            ]
    if problems:
        raise ConfigError(problems)
    print(json.dumps(summary, indent=2) if arguments.json else _table(summary))
    return 0


def _describe_dataset(path: Path) -> dict[str, Any]:
    from stable_audio_tools.core.config import load
    from stable_audio_tools.data.dataset import check_dataset_config

    part = check_dataset_config(load(path))
    return {"dataset": part.type}


def _table(summary: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _table(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:,}' if isinstance(value, int) else value}")
    return "\n".join(lines)


main = command(parser, run)
