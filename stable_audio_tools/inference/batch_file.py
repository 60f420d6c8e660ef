"""What a batch asks for, out of YAML, CSV or JSONL; every mistake is told before any work.

    music:                                groups become folders
      drum:
        sample-1:                         a leaf becomes files: music/drum/sample-1_item-1.wav, ..._item-2.wav
          prompt: tech house drum loop    keys are conditions of the model,
          seconds_total: 30
          steps: 50                       or settings (`Settings`) of this leaf alone

A row of CSV or JSONL is a leaf; its `name` is the path, its number stands in for a missing one.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stable_audio_tools.config import ConfigError
from stable_audio_tools.config.sentences import nearest, sentences, show
from stable_audio_tools.inference.model_facts import ModelFacts
from stable_audio_tools.inference.outputs import name_problems
from stable_audio_tools.system.seeds import MAX_SEED

SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".jsonl")


@dataclass(frozen=True)
class Request:
    """One leaf: where it stands in the file, its path below the output folder, its keys and values."""

    where: str
    name: str
    values: Mapping[str, Any]
    is_text: bool = False  # every value is a text, out of a CSV


class Settings(BaseModel):
    """Settings that a leaf may change beside its conditions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    steps: Annotated[int | None, Field(ge=1)] = None
    cfg_scale: Annotated[float | None, Field(allow_inf_nan=False)] = None
    seed: Annotated[int | None, Field(ge=-1, le=MAX_SEED)] = None
    sampler: str | None = None
    sampler_type: str | None = None
    seconds: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    n_sample_per_cond: Annotated[int | None, Field(ge=1)] = None
    negative_prompt: str | None = None
    init_audio: str | None = None
    init_noise_level: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    inpaint_audio: str | None = None
    inpaint: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None


def read_requests(path: str | Path) -> list[Request]:
    """The leaves of a file, in its order."""
    path = Path(path)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: cannot tell what it is; the name must end in {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    if not text.strip():
        raise ConfigError(f"{path}: is empty; write at least one prompt")
    requests = list(readers.get(path.suffix.lower(), _read_yaml)(path, text))
    if not requests:
        raise ConfigError(f"{path}: holds no prompts")
    return requests


# ------------------------------------------------------------------ YAML


class _Loader(yaml.SafeLoader):
    """Repeated keys are an error: YAML itself lets the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice; rename or remove one", key_node.start_mark
                )
            seen.append(key)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def _read_yaml(path: Path, text: str) -> Iterator[Request]:
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected names with prompts below them, got {show(tree)}")
    if _is_leaf(tree) and any(value is not None for value in tree.values()):
        raise ConfigError(f"{path}: the prompt has no name; put its keys below one, which names the file")
    yield from _leaves(path, tree, ())


def _leaves(path: Path, tree: Mapping[Any, Any], above: tuple[str, ...]) -> Iterator[Request]:
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
            yield Request(where, "/".join(names), value)
        elif all(below is None or isinstance(below, dict) for below in value.values()):
            yield from _leaves(path, value, names)
        else:
            group = next(name for name, below in value.items() if isinstance(below, dict))
            raise ConfigError(
                f"{path}: {where}: mixes the group {group!r} with keys of a prompt; give each its own name"
            )


def _is_leaf(value: Mapping[Any, Any]) -> bool:
    return not any(isinstance(below, dict) for below in value.values())


# ------------------------------------------------------------------ CSV and JSONL


def _read_csv(path: Path, text: str) -> Iterator[Request]:
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        head = [name.strip() for name in next(rows)]
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
        yield Request(f"line {line}", values.pop("name", f"{number:0{width}d}"), values, is_text=True)


def _read_jsonl(path: Path, text: str) -> Iterator[Request]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    width = len(str(len(lines)))
    for count, (number, line) in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: not valid JSON ({error})") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}:{number}: expected an object {{...}}, got {show(values)}")
        name = values.pop("name", f"{count:0{width}d}")
        if not isinstance(name, str):
            raise ConfigError(f"{path}:{number}: name: expected a string, got {show(name)}")
        yield Request(f"line {number}", name, values)


# ------------------------------------------------------------------ what the keys mean


@dataclass(frozen=True)
class Checked:
    """A request whose keys are known to fit the model."""

    name: str
    conditions: Mapping[str, Any]
    settings: Settings


def check_requests(requests: Sequence[Request], facts: ModelFacts) -> tuple[list[Checked], list[str]]:
    """The requests, sorted into conditions and settings, and what is wrong with them, a sentence each."""
    checked, problems = [], []
    for request in requests:
        made, found = _check(request, facts)
        problems += [f"{request.where}: {text}" for text in (*name_problems(request.name), *found)]
        if made is not None:
            checked.append(made)
    return checked, problems


def _check(request: Request, facts: ModelFacts) -> tuple[Checked | None, list[str]]:
    known = [*facts.keys, *Settings.model_fields]
    problems = [f"{key}: unknown key; {nearest(str(key), known)}" for key in request.values if key not in known]
    values = {key: value for key, value in request.values.items() if key in known}
    if request.is_text:
        values = {key: _from_text(key, value, facts) for key, value in values.items()}
    conditions = {key: value for key, value in values.items() if key in facts.keys}
    problems += facts.check_conditions(conditions)
    try:
        settings = Settings.model_validate({key: value for key, value in values.items() if key not in conditions})
    except ValidationError as error:
        found = [f"{where.lstrip('.')}: {text}" for where, text in sentences(error, "", Settings)]
        return None, problems + found
    return Checked(request.name, conditions, settings), problems


def _from_text(key: str, text: str, facts: ModelFacts) -> Any:
    """The value of a CSV cell: a text where a text is wanted, else what YAML makes of it."""
    if key in facts.keys:
        is_number = facts.input_of(key).kind in ("number", "integer")
        return _scalar(text) if is_number else text
    return (
        text if key in ("sampler", "sampler_type", "negative_prompt", "init_audio", "inpaint_audio") else _scalar(text)
    )


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
