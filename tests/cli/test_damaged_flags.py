"""Senseless values of every flag of every command: each is parsed, or refused with a sentence that names the flag."""

import importlib
from typing import Any

import pytest

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.main import COMMANDS
from stable_audio_tools.core.errors import UserError

VALUES = ("", "x", "-1", "0", "1e999", "nan", "9" * 400, "1,2", "[", "\udcff", "a:b:c", "--", "é" * 300, "../../x")


def commands() -> list[tuple[str, Command[Any]]]:
    found = []
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.place.partition(":")
        command = getattr(importlib.import_module(f"stable_audio_tools.cli.{module}"), attribute or "main", None)
        if isinstance(command, Command):
            found.append((name, command))
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_a_senseless_value_is_parsed_or_refused(name: str, command: Command[Any]) -> None:
    flags = [flag for flag in command.parser()._option_string_actions if flag.startswith("--") and flag != "--help"]
    for flag in flags:
        for value in VALUES:
            try:
                command.parse([f"{flag}={value}"], name)
            except (UserError, OSError) as error:  # both are printed without a traceback
                assert str(error).strip()
