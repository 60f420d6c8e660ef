"""Prompt files in YAML, JSON, CSV or JSONL; every mistake is reported before any work.

    music:                                groups become folders
      drum:
        sample-1:                         a leaf becomes files: music/drum/sample-1_item-1.wav, ..._item-2.wav
          prompt: tech house drum loop    keys are conditions of the model,
          seconds_total: 30
          steps: 50                       or fields of its `GenerationRequest`

A row of CSV or JSONL is a leaf; its `name` is the path; without a name, its number is.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from stable_audio_tools.core.config.sentences import nearest, sentences, show
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.request import OPTIONS, GenerationRequest

SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".jsonl")
_DEEPEST = 64  # levels of groups, keys and lists
_TOO_DEEP = f"is nested too deeply; groups and lists may be nested up to {_DEEPEST} levels"
_MOST_DIGITS = 300  # a difference of two such numbers is still a float
_HALF = re.compile(r"[\ud800-\udfff]")  # of a character beyond U+FFFF, alone


@dataclass(frozen=True)
class Leaf:
    """One prompt of a file: its place in the file, its path below the output folder, its keys and values."""

    where: str
    name: str
    values: Mapping[str, object]
    is_text: bool = False  # every value is a text, from a CSV


@cache
def settings_of_leaves() -> type[BaseModel]:
    """Return the model of settings that a leaf may have beside its conditions."""
    hints = get_type_hints(GenerationRequest, localns={"AudioSource": str, "Tensor": object}, include_extras=True)
    fields: dict[str, Any] = {}
    for name, about in OPTIONS.items():
        if about.key:
            hint = _LISTS.get(name, hints[name])
            bounds = Field(
                ge=about.ge, gt=about.gt, le=about.le, allow_inf_nan=False if float in get_args(hint) else None
            )
            for key in (name, about.alias) if about.alias else (name,):
                fields[key] = (Annotated[hint, bounds] | None, None)
    return create_model("Settings", __config__=ConfigDict(extra="forbid", strict=True), **fields)


_Seconds = Annotated[float, Field(allow_inf_nan=False)]
_LISTS: dict[str, Any] = {  # as files write them
    "inpaint": list[Annotated[list[_Seconds], Field(min_length=2, max_length=2)]],
    "sections": list[dict[str, Any]],
}


def read_leaves(path: str | Path) -> list[Leaf]:
    """The leaves of a file, in its order."""
    path = Path(path)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: unknown format; the name must end in {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    if not text.strip():
        raise ConfigError(f"{path}: is empty; write at least one prompt")
    leaves = list(readers.get(path.suffix.lower(), _read_tree)(path, text))
    if not leaves:
        raise ConfigError(f"{path}: holds no prompts")
    return leaves


# ------------------------------------------------------------------ YAML and JSON


class _Loader(yaml.SafeLoader):
    """A loader that refuses repeated keys, of which YAML itself silently keeps the last one.

    Nodes are built in the order of the file (`deep`), because a merge changes the node that it takes keys from.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise _yaml_error("contains itself through an alias; write the content out", node)
        try:
            return super().construct_object(node, deep=True)
        except (ValueError, TypeError, AttributeError, LookupError):
            kind = node.tag.rpartition(":")[2]
            problem = f"{show(node.value)} is not a valid {kind}; put it in quotes if it is a text"
            raise _yaml_error(problem, node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: list[object] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _yaml_error(f"{key!r} is given twice; rename or remove one", key_node)
            seen.append(key)
        mapping: dict[object, object] = super().construct_mapping(node, deep)
        return mapping


def _yaml_reason(error: yaml.MarkedYAMLError) -> str:
    """Return the reason of a syntax error; the parser's own words for wrong indentation do not name it."""
    problem = error.problem or "not valid YAML"
    if isinstance(error, yaml.parser.ParserError) and "<block end>" in problem:
        return "is indented differently from the lines above; start all keys of a group in the same column"
    if "'\\t'" in problem:
        return "is indented by a tab; indent by spaces"
    if problem.startswith("mapping values are not allowed"):
        return "has a second ': ' or a wrong indentation; put texts that contain ': ' in quotes"
    return ", ".join(part for part in (error.context, problem) if part)


def _yaml_error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _parse_yaml(text: str, where: str) -> object:
    """Parse YAML; each message starts with `where`."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {_yaml_reason(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: {_TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: an escape beyond Unicode
        raise ConfigError(f"{where}: not valid YAML ({str(error).splitlines()[0]})") from None
    _refuse_unusable(tree, where)
    return tree


def _parse_json(text: str, path: Path, line: int | None = None) -> object:
    """Parse a JSON file, or one line of it."""
    where = str(path) if line is None else f"{path}:{line}"

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        merged: dict[str, object] = {}
        for key, value in pairs:
            if key in merged:
                raise ConfigError(f"{where}: {key!r} is given twice in one object; rename or remove one")
            merged[key] = value
        return merged

    def refuse(name: str) -> NoReturn:
        raise ConfigError(f"{where}: {name} is not a number in JSON; write a finite one")

    def read_integer(digits: str) -> int:
        return int(
            digits[: 2 * _MOST_DIGITS]
        )  # Python reads at most 4300 digits; longer numbers are out of range anyway

    try:
        tree = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_int=read_integer)
    except json.JSONDecodeError as error:
        place = f"{path}:{line or error.lineno}:{error.colno}"
        raise ConfigError(f"{place}: not valid JSON ({error.msg[:1].lower()}{error.msg[1:]})") from None
    except RecursionError:
        raise ConfigError(f"{where}: {_TOO_DEEP}") from None
    _refuse_unusable(tree, where)
    return tree


def _refuse_unusable(tree: object, where: str) -> None:
    """Raise for unusable values; each object is visited once per level, because aliases can form huge trees."""
    level: list[tuple[tuple[object, ...], object]] = [((), tree)]
    for _ in range(_DEEPEST):
        for keys, value in level:
            if problem := _unusable(value):
                raise ConfigError(": ".join(filter(None, (where, ".".join(map(str, keys)), problem))))
        level = list({id(below[1]): below for keys, value in level for below in _below(keys, value)}.values())
    if level:
        raise ConfigError(f"{where}: {_TOO_DEEP}")


def _below(keys: tuple[object, ...], value: object) -> Iterator[tuple[tuple[object, ...], object]]:
    """Yield the children of a value, names before their values, so that a path in a message is printable."""
    if isinstance(value, dict):
        yield from ((keys, name) for name in value)
        yield from (((*keys, name), below) for name, below in value.items())
    elif isinstance(value, list | tuple | set):
        yield from ((keys, below) for below in value)


def _unusable(value: object) -> str | None:
    if isinstance(value, str) and (half := _HALF.search(value)):
        return f"{show(value)} holds {half[0]!r}, half of a character; write the whole character itself"
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return f"a number of more than {_MOST_DIGITS} digits is out of range; write a smaller one"
    return None


def _read_tree(path: Path, text: str) -> Iterator[Leaf]:
    tree = _parse_json(text, path) if path.suffix.lower() == ".json" else _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected names with prompts below them, got {show(tree)}")
    if _is_leaf(tree) and any(value is not None for value in tree.values()):
        raise ConfigError(f"{path}: the prompt has no name; put its keys below one, which names the file")
    yield from _leaves(path, tree, ())


def _leaves(path: Path, tree: Mapping[object, object], above: tuple[str, ...]) -> Iterator[Leaf]:
    for key, value in tree.items():
        where = ".".join([*above, str(key)])
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ConfigError(f"{path}: {where}: YAML reads this name as {show(key)}; put it in quotes")
        names = (*above, str(key))
        if value is None:
            raise ConfigError(f"{path}: {where}: holds nothing; write the keys of a prompt below it")
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {where}: expected a group or the keys of a prompt, got {show(value)}")
        if _is_leaf(value) and None not in value.values():
            yield Leaf(where, "/".join(names), value)
        elif all(below is None or isinstance(below, dict) for below in value.values()):
            yield from _leaves(path, value, names)
        elif _is_leaf(value):
            empty = next(name for name, below in value.items() if below is None)
            raise ConfigError(f"{path}: {where}.{empty}: has no value; write one, or remove the key")
        else:
            group = next(name for name, below in value.items() if isinstance(below, dict))
            raise ConfigError(
                f"{path}: {where}: mixes the group {group!r} with keys of a prompt; give each its own name"
            )


def _is_leaf(value: Mapping[object, object]) -> bool:
    return not any(isinstance(below, dict) for below in value.values())


# ------------------------------------------------------------------ CSV and JSONL


def _read_csv(path: Path, text: str) -> Iterator[Leaf]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = [name.strip() for name in next(rows)]
        separator = next((mark for mark in ";\t|" if len(head) == 1 and mark in head[0]), None)
        if separator is not None:
            shown = "a tab" if separator == "\t" else repr(separator)
            raise ConfigError(f"{path}:1: found the one column {head[0]!r}; separate columns by commas, not by {shown}")
        for name in head:
            if not name or head.count(name) > 1:
                raise ConfigError(f"{path}:1: the column {name!r} is {'given twice' if name else 'without a name'}")
        body = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigError(f"{path}:{rows.line_num}: not valid CSV ({error})") from None
    width = len(str(len(body)))
    for number, (line, row) in enumerate(body, start=1):
        if len(row) != len(head):
            raise ConfigError(f"{path}:{line}: has {len(row)} cells, and the head has {len(head)} columns")
        values = {name: cell.strip() for name, cell in zip(head, row) if cell.strip()}
        yield Leaf(f"line {line}", values.pop("name", f"{number:0{width}d}"), values, is_text=True)


def _read_jsonl(path: Path, text: str) -> Iterator[Leaf]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    width = len(str(len(lines)))
    for count, (number, line) in enumerate(lines, start=1):
        values = _parse_json(line, path, number)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}:{number}: expected an object {{...}}, got {show(values)}")
        for key, value in values.items():
            if value is None:
                raise ConfigError(f"{path}:{number}: {key}: has no value; write one, or remove the key")
        name = values.pop("name", f"{count:0{width}d}")
        if not isinstance(name, str):
            raise ConfigError(f"{path}:{number}: name: expected a string, got {show(name)}")
        yield Leaf(f"line {number}", name, values)


# ------------------------------------------------------------------ what the keys mean


def read_values(leaf: Leaf, facts: ModelFacts) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the conditions of a leaf, the fields of its request, and a sentence for each unknown or invalid key."""
    model = settings_of_leaves()
    known = [*facts.keys, *model.model_fields]
    problems = [f"{key}: unknown key; {nearest(str(key), known)}" for key in leaf.values if key not in known]
    values = {key: value for key, value in leaf.values.items() if key in known}
    if leaf.is_text:
        values = {key: _from_text(key, str(value), facts, model) for key, value in values.items()}
    conditions = {key: value for key, value in values.items() if key in facts.keys}
    try:
        checked = model.model_validate({key: value for key, value in values.items() if key not in conditions})
    except ValidationError as error:
        return conditions, {}, [*problems, *(f"{w.lstrip('.')}: {text}" for w, text in sentences(error, "", model))]
    settings = checked.model_dump(exclude_none=True)
    for name, about in OPTIONS.items():
        if about.alias and about.alias in settings:
            if name in settings:
                problems.append(f"{about.alias}: {name} is given too; keep one of them")
            settings[name] = settings.pop(about.alias)
    return conditions, settings, problems


def _from_text(key: str, text: str, facts: ModelFacts, model: type[BaseModel]) -> object:
    """Read a CSV cell: a text where a text is expected, otherwise a value in YAML."""
    if key in facts.keys:
        is_text = facts.input_of(key).kind not in ("number", "integer")
    else:
        is_text = str in get_args(model.model_fields[key].annotation)
    if is_text:
        return text
    try:
        return _parse_yaml(text, "")
    except ConfigError:
        return text  # the validation then reports it
