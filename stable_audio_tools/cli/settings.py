"""Flags from a dataclass: each field is a flag, its default can come from an ini file, and --help shows both.

The ini format is the published one: a section `[DEFAULTS]`, keys in snake case, values as Python literals.
"""

import argparse
import ast
import configparser
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError

S = TypeVar("S")

CONFIG_FILE = "defaults.ini"


def option(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """A field of a settings dataclass."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices)})


def add_flags(parser: argparse.ArgumentParser, settings: type[Any], argv: Sequence[str] | None) -> None:
    """Give the parser one flag per field, with defaults from the ini file that `--config-file` names.

    Without that flag, `defaults.ini` of the current folder is read where it has one.
    """
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=None,
        help=f"ini file of defaults (else ./{CONFIG_FILE}, where present)",
    )
    # A help text must not fail on a broken ini file: there the built-in defaults are shown.
    words = list(sys.argv[1:] if argv is None else argv)
    defaults = read_defaults(_config_file(words), settings)
    types = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        default = defaults.get(field.name, field.default)
        flag, hint = f"--{field.name.replace('_', '-')}", types[field.name]
        about: dict[str, Any] = {"help": field.metadata["help"], "default": default, "dest": field.name}
        if field.metadata["choices"]:
            about["choices"] = field.metadata["choices"]
        if hint is bool:
            parser.add_argument(flag, type=_flag, nargs="?", const=True, metavar="BOOL", **about)
        elif get_origin(hint) is tuple:
            parser.add_argument(flag, nargs="+", metavar=field.name.upper(), **about)
        elif bool in get_args(hint) or float in get_args(hint):
            parser.add_argument(flag, type=_literal, metavar="VALUE", **about)
        else:
            name = None if "choices" in about else field.name.split("_")[-1].upper()
            parser.add_argument(flag, type=_plain_type(hint), metavar=name, **about)


def settings_from(arguments: argparse.Namespace, settings: type[S]) -> S:
    """The dataclass from parsed flags."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def read_defaults(path: Path | None, settings: type[Any]) -> dict[str, Any]:
    """Values of an ini file's [DEFAULTS] section; unknown keys and wrong values are named together."""
    if path is None:
        return {}
    reader = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#", ";"))
    reader.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        if not reader.read(path, encoding="utf-8"):
            raise ConfigError(f"{path}: no such file")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable ini file ({' '.join(str(error).split())})") from None
    if not reader.has_section("DEFAULTS"):
        raise ConfigError(f"{path}: no section [DEFAULTS]; put the settings under one")
    types, values, problems = get_type_hints(settings), {}, []
    for key, text in reader.items("DEFAULTS"):
        if key not in types:
            problems.append(f"{path}: {key}: unknown setting; {nearest(key, types)}")
            continue
        try:
            values[key] = _from_text(text, types[key])
        except (ValueError, argparse.ArgumentTypeError) as error:
            problems.append(f"{path}: {key}: {error}")
    if problems:
        raise ConfigError(problems)
    return values


def _config_file(words: Sequence[str]) -> Path | None:
    for index, word in enumerate(words):
        if word.startswith("--config-file="):
            return Path(word.partition("=")[2])
        if word == "--config-file" and index + 1 < len(words):
            return Path(words[index + 1])
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def _from_text(text: str, hint: Any) -> Any:
    text = text.strip()
    unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if hint is bool:
        return _flag(unquoted)
    if unquoted == "None" and hint is str:
        return ""
    if get_origin(hint) is tuple:
        return tuple(unquoted.replace(",", " ").split())
    if bool in get_args(hint) or float in get_args(hint):
        return _literal(unquoted)
    return _plain_type(hint)(unquoted)


def _plain_type(hint: Any) -> Any:
    kind = next((member for member in (int, float) if hint is member or member in get_args(hint)), str)

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None

    return convert


def _flag(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0", ""):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
