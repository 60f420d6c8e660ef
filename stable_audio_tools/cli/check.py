"""`check`: is this config right, and what does it build?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option


@dataclass(frozen=True)
class CheckSettings(Settings):
    """Settings of `check`."""

    model: Path = option(help="model or dataset config", positional=True, metavar="CONFIG.json")
    dataset: Path | None = option(None, "the other of the two", positional=True, metavar="CONFIG.json")
    json: bool = option(False, "print the summary as JSON")


def run(settings: CheckSettings) -> None:
    from stable_audio_tools.training.checks import check_files

    summary = check_files([path for path in (settings.model, settings.dataset) if path is not None])
    print(json.dumps(summary, indent=2) if settings.json else _table(summary))


def _table(summary: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _table(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:,}' if isinstance(value, int) else value}")
    return "\n".join(lines)


main = Command(
    CheckSettings,
    run,
    "Check a model config, a dataset config or both, the files they name and their training section, and print what "
    "they build. Exit status 2 with one line per mistake when something is wrong.",
)
