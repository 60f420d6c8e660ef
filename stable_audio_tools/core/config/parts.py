"""Nodes of a config: checked together, so that all mistakes are reported at once, and built one by one."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar, cast, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, create_model
from pydantic_core import PydanticCustomError, core_schema

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.kinds import KINDS
from stable_audio_tools.core.config.registry import (
    STRICT,
    Component,
    accept_objects,
    components,
    parameters,
    schema,
    siblings_schema,
)
from stable_audio_tools.core.config.sentences import Problem, nearest, sentences, show
from stable_audio_tools.core.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

KIND_MARK = "x-kind"  # placeholder for a tagged node in a JSON Schema whose definitions are incomplete

# Errors of torch and arithmetic for sizes that give no valid network; any other error is a bug.
_REFUSALS = (ValueError, RuntimeError, ZeroDivisionError, OverflowError, MemoryError)


@dataclasses.dataclass
class Part:
    """A checked node, not yet built."""

    kind: str
    type: str
    config: SimpleNamespace
    siblings: SimpleNamespace = dataclasses.field(default_factory=SimpleNamespace)
    path: str = ""
    notes: list[Problem] = dataclasses.field(default_factory=list)  # (key below this node, why it has no effect)

    @property
    def component(self) -> Component:
        return components(self.kind)[self.type]

    @property
    def facts(self) -> JsonObject:
        """Facts about the component that follow from its config alone."""
        facts = self.component.facts or self.component.described_by.facts
        return facts(self.config) if facts else {}

    def build(self, **runtime: Any) -> Any:
        """Call the constructor with the config and the runtime values it accepts."""
        component, kind = self.component, KINDS[self.kind]
        offered = {**vars(self.siblings), **runtime}
        arguments: JsonObject = {}
        for name, _, default, from_program, key in parameters(component.target):
            if component.body is not None and name == "config":
                arguments[name] = Part(*component.body, self.config, path=f"{self.path}.config")
            elif not from_program:
                arguments[name] = getattr(self.config, key)
            elif key in offered:
                arguments[name] = offered[key]
            elif default is ...:
                raise TypeError(f"{self.path}: {self.kind} {self.type!r} needs {key!r} from its caller")
        try:
            built = component.target(**arguments)
        except UserError:
            raise
        except _REFUSALS as error:
            # Each value is valid, but the combination is not. Errors of nested parts already carry their own path.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{self.path or self.kind}: {self.type!r} cannot be built from these values ({reason})"
            ) from error
        return kind.finish(built, self.siblings) if kind.finish else built


class Kind:
    """Annotation of a parameter whose value is a tagged node of this kind, passed on as a `Part`."""

    def __init__(self, name: str) -> None:
        if name not in KINDS:
            raise TypeError(f"no kind named {name!r}; declare it in stable_audio_tools/core/config/kinds.py")
        self.name = name

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        node = core_schema.no_info_plain_validator_function(self._receive)
        return core_schema.nullable_schema(node) if type(None) in get_args(source) else node

    def __get_pydantic_json_schema__(self, source: Any, handler: GetJsonSchemaHandler) -> JsonObject:
        reference = {KIND_MARK: self.name}
        return {"anyOf": [reference, {"type": "null"}]} if source["type"] == "nullable" else reference

    def _receive(self, value: object) -> Part:
        part, problems = _examine_node(self.name, value, "")
        if part is None:
            # `sentences` adds the path of this field, which only pydantic knows, to each problem.
            raise PydanticCustomError("part", "mistakes below", {"problems": problems})
        return part


def validate(kind: str, node: object, path: str = "", tag: str | None = None) -> Part:
    """Check a node and everything below it; one ConfigError lists every mistake.

    If `tag` is given, the node is the config itself, as in `{"model_type": tag, "model": node}`.
    """
    path = path or kind
    part, problems = examine_body(kind, tag, node, path) if tag is not None else _examine_node(kind, node, path)
    if part is None:
        raise as_error(problems)
    place(part, path, path if tag is not None else f"{path}.config")
    return part


def build(kind: str, node: object, path: str = "", tag: str | None = None, **runtime: Any) -> Any:
    """Check a node and call its constructor."""
    return validate(kind, node, path, tag).build(**runtime)


def as_record(kind: type[Record], value: Record | Mapping[str, object] | None, path: str) -> Record:
    """Return `value` as a record: a record itself, the mapping of a config, or None for the defaults."""
    if isinstance(value, kind):
        return value
    model = create_model("record", __config__=STRICT, value=(accept_objects(kind), ...))
    try:
        checked = model.model_validate({"value": {} if value is None else dict(cast(Mapping[str, object], value))})
    except ValidationError as error:
        problems = [(f"{path}{where.removeprefix('.value')}", text) for where, text in sentences(error, "", model)]
        raise as_error(problems) from None
    record: Record = getattr(checked, "value")  # noqa: B009 (the field is defined above)
    place(record, path, path)
    return record


def as_error(problems: Iterable[Problem]) -> ConfigError:
    """Return one exception with a line for each mistake."""
    return ConfigError([f"{path.lstrip('.')}: {text}" for path, text in problems])


def _examine_node(kind: str, node: object, path: str) -> tuple[Part | None, list[Problem]]:
    noun, known = kind.replace("_", " "), components(kind)
    if not isinstance(node, Mapping):
        return None, [(path, f'expected an object {{"type": ..., "config": {{...}}}}, got {show(node)}')]
    if "type" not in node:
        return None, [(f"{path}.type", f"missing; it names the {noun}: {', '.join(sorted(known))}")]
    tag = node["type"]
    if not isinstance(tag, str) or tag not in known:
        return None, [(f"{path}.type", f"no {noun} named {show(tag)}; {nearest(str(tag), known)}")]
    beside = {str(key): value for key, value in node.items() if key not in ("type", "config")}
    siblings, problems = _examine_siblings(known[tag], beside, path)
    part, more = examine_body(kind, tag, node.get("config") or {}, f"{path}.config")
    problems += more
    if problems or part is None or siblings is None:
        return None, problems
    part.siblings = siblings
    taken = {p.key for p in parameters(part.component.target) if p.runtime}
    ignored = part.component.ignored
    part.notes = [(f".config{key}", text) for key, text in part.notes]
    part.notes += [(f".{key}", "this key has no effect and is ignored") for key in beside if key in ignored]
    unused = set(beside) - KINDS[kind].common - taken - ignored
    part.notes += [(f".{key}", f"{tag!r} does not use this key; it is ignored") for key in sorted(unused)]
    return part, []


def _examine_siblings(
    component: Component, beside: JsonObject, path: str
) -> tuple[SimpleNamespace | None, list[Problem]]:
    model = siblings_schema(component.kind)
    inside = schema(component.kind, component.tag).model_fields
    kept = {key: value for key, value in beside.items() if key not in component.ignored}
    misplaced = [key for key in kept if key in inside and key not in model.model_fields]
    problems = [
        (f"{path}.{key}", "this key belongs inside 'config', beside the others of this component") for key in misplaced
    ]
    for key in misplaced:
        kept.pop(key)
    try:
        values = model.model_validate(kept)
    except ValidationError as error:
        return None, problems + sentences(error, path, model, ("type", "config"))
    return SimpleNamespace(**{name: getattr(values, name) for name in model.model_fields}), problems


def examine_body(kind: str, tag: str, config: object, path: str) -> tuple[Part | None, list[Problem]]:
    """Check the `config` of a known tag; return the part (None if there are mistakes) and the mistakes."""
    if not isinstance(config, Mapping):
        return None, [(path, f"expected an object, got {show(config)}")]
    component = components(kind)[tag]
    described, model = component.described_by, schema(kind, tag)
    kept = {str(key): value for key, value in config.items()}
    ignored = sorted((component.ignored | described.ignored) & set(kept))
    for key in ignored:
        kept.pop(key)
    try:
        values = model.model_validate(kept)
    except ValidationError as error:
        return None, sentences(error, path, model)
    namespace = SimpleNamespace(**{name: getattr(values, name) for name in model.model_fields})
    problems = [
        (f"{path}.{key}" if key else path, text)
        for check in dict.fromkeys((component.check, described.check))
        if check is not None
        for key, text in check(namespace)
    ]
    notes = [(f".{key}", "this key has no effect and is ignored") for key in ignored]
    return (None, problems) if problems else (Part(kind, tag, namespace, notes=notes), [])


def place(value: object, path: str, config_path: str = "") -> None:
    """Record in every nested part its path in the file, and warn about keys without effect."""
    if isinstance(value, Part):
        value.path = path
        for key, text in value.notes:
            logger.warning("%s%s: %s", path, key, text)
        for name, item in vars(value.config).items():
            place(item, f"{config_path or f'{path}.config'}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            place(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            place(item, f"{path}.{key}")
    elif dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            place(getattr(value, entry.name), f"{path}.{entry.name}")
