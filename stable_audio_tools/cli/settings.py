"""Flags from a settings record: each field is a flag whose default may come from an ini file.

The ini format is the published one: a section `[DEFAULTS]`, keys in snake case, values as Python literals.
"""

import argparse
import configparser
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.settings import Setting, Settings, flag_of, option_of

S = TypeVar("S", bound=Settings)
T = TypeVar("T")

CONFIG_FILE = "defaults.ini"


# ------------------------------------------------------------------ flags


def add_flags(
    parser: argparse.ArgumentParser, settings: type[Settings], defaults: Mapping[str, object], takes_ini: bool = False
) -> None:
    """Add one flag per field to the parser; `defaults` override the defaults of the fields.

    With `takes_ini`, a switch accepts true or false, so that a flag can turn off a switch of the ini file.
    """
    types = get_type_hints(settings)
    sections: dict[str, argparse._ActionsContainer] = {"": parser}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        about = option_of(field)
        if about.after_dashes:
            continue  # the parser handles it, because argparse cannot
        section = sections.get(about.group)
        if section is None:
            section = sections[about.group] = parser.add_argument_group(about.group)
        default = defaults.get(field.name, field.default)
        required = default is dataclasses.MISSING
        words = _arguments_of(field.name, types[field.name], about, None if required else default, takes_ini)
        if about.positional:
            if not required:
                words.setdefault("nargs", "?")
            section.add_argument(field.name, **words)
        else:
            flags = dict.fromkeys((flag_of(field.name), *about.flags))
            section.add_argument(*flags, dest=field.name, required=required, **words)


def settings_from(arguments: argparse.Namespace, settings: type[S]) -> S:
    """Create the record from parsed flags."""
    values = {field.name: _frozen(getattr(arguments, field.name)) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return settings(**values)


def flags_from(settings: Settings) -> list[str]:
    """Return the command line for this record, for a command that starts itself in other processes."""
    words: list[str] = []
    places: list[str] = []
    behind: list[str] = []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value, about, flag = getattr(settings, field.name), option_of(field), flag_of(field.name)
        if value == field.default:
            continue
        if about.after_dashes:
            behind = ["--", *value]
        elif about.positional:
            places += [str(value)] if not isinstance(value, tuple) else map(str, value)
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{field.name.replace('_', '-')}")
        elif isinstance(value, tuple) and (about.repeat or any(type(one) is tuple for one in value)):
            for one in value:
                words += [flag, *(map(str, one) if type(one) is tuple else (str(one),))]
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else (str(value),))]
    return [*places, *words, *behind]


def _listed(value: object) -> list[object] | None:
    """Return a default that argparse may extend."""
    return list(value) if isinstance(value, Sequence) else None


def _frozen(value: object) -> object:
    """Convert the lists of argparse to tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _arguments_of(name: str, hint: object, about: Setting, default: object, takes_ini: bool) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a field."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    plain = kinds[0] if len(kinds) == 1 else hint
    words: dict[str, Any] = {"help": about.help, "default": default}
    if plain is bool and takes_ini:
        return {**words, "type": _flag, "nargs": "?", "const": True, "metavar": "BOOL"}
    if plain is bool:
        return {**words, "action": argparse.BooleanOptionalAction if hint is not bool or default else "store_true"}
    inner, several = plain, get_origin(plain) is tuple
    if several:
        inner, *more = get_args(plain)
        if more != [Ellipsis]:
            words["nargs"] = len(more) + 1
        elif get_origin(inner) is tuple:  # rows of values, one per use of the flag
            words |= {"nargs": len(get_args(inner)), "action": "append", "default": _listed(default)}
            inner = get_args(inner)[0]
        elif about.repeat:
            words |= {"action": "append", "default": _listed(default)}
        else:
            words["nargs"] = "*" if about.may_be_empty else "+"
    elif about.may_be_empty:
        words |= {"nargs": "?", "const": True}
    choices = about.choices or (get_args(inner) if get_origin(inner) is Literal else ())
    words["type"] = reading(about.parse) if about.parse else _reader(inner, choices)
    if choices:
        words["choices"] = choices
    if about.metavar or not choices:
        words["metavar"] = about.metavar or name.split("_")[-1].upper()
    return words


# ------------------------------------------------------------------ ini files


def read_defaults(path: Path | None, settings: type[Settings]) -> dict[str, object]:
    """Read the [DEFAULTS] section of an ini file; one error lists all unknown keys and invalid values."""
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
        raise ConfigError(f"{path}: section [DEFAULTS] is missing; put the settings into it")
    types, values, problems = get_type_hints(settings), {}, []
    fields = {field.name: option_of(field) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for key, text in reader.items("DEFAULTS"):
        if key not in fields:
            from stable_audio_tools.core.config.sentences import nearest

            problems.append(f"{path}: {key}: unknown setting; {nearest(key, types)}")
            continue
        try:
            values[key] = _from_text(text, types[key], fields[key])
        except (ValueError, argparse.ArgumentTypeError) as error:
            problems.append(f"{path}: {key}: {error}")
    if problems:
        raise ConfigError(problems)
    return values


def config_file(words: Sequence[str]) -> Path | None:
    """Return the ini file of `--config-file`, or `defaults.ini` in the current folder if it exists."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == "--config-file":
            if equals:
                return Path(value)
            if index + 1 < len(words):
                return Path(words[index + 1])
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def _from_text(text: str, hint: object, about: Setting) -> object:
    text = text.strip()
    unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if hint is bool:
        return _flag(unquoted)
    if unquoted == "None" and hint is str:
        return ""
    if get_origin(hint) is tuple:
        return tuple(unquoted.replace(",", " ").split())
    return (about.parse or _reader(hint, about.choices))(unquoted)


# ------------------------------------------------------------------ values


def _reader(hint: object, choices: Sequence[str]) -> Callable[[str], object]:
    """Return a function that converts the text of a flag to a value of the type."""
    if choices:
        by_text = {str(choice): choice for choice in choices}

        def choose(text: str) -> str:
            if text not in by_text:
                allowed = ", ".join(name for name in by_text if name)
                raise argparse.ArgumentTypeError(f"expected one of {allowed}, got {_shown(text)}")
            return by_text[text]

        return choose
    if hint is Path or hint is str:
        read: Callable[[str], object] = hint
        return read
    if hint is int:
        return _whole_number
    return _number if float in (hint, *get_args(hint)) and int not in get_args(hint) else _number_or_count


def reading(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Wrap `parse` so that argparse reports the message of its ValueError."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {_shown(text)}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {_shown(text)}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {_shown(text)}")
    return value


def _number_or_count(text: str) -> int | float:
    """Return an int for "3" and a float for "3.0"."""
    return int(text) if text.strip().lstrip("+-").isdigit() else _number(text)


def _flag(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0", ""):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {_shown(text)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
