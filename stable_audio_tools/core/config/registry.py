"""The registry: `@register(kind, tag)` adds a class or function, whose signature is the schema of its JSON."""

import dataclasses
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, create_model
from pydantic_core import core_schema

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.kinds import KINDS

T = TypeVar("T")
Factory = Callable[..., Any]  # a class or function that builds a component
C = TypeVar("C", bound=Factory)
Facts = Callable[[SimpleNamespace], JsonObject]
Check = Callable[[SimpleNamespace], Iterable[tuple[str, str]]]


class _RuntimeMarker:
    """Marker of a parameter that the JSON does not contain."""


Runtime = Annotated[T, _RuntimeMarker()]


@dataclasses.dataclass(frozen=True)
class Key:
    """A different key, type or default for a parameter in the JSON, or among the `Runtime` values."""

    name: str = ""
    type: object = ...
    default: object = ...


@dataclasses.dataclass(frozen=True)
class Component:
    """A registered class or function, with the facts and checks that need only its config."""

    kind: str
    tag: str
    target: Factory
    ignored: frozenset[str]
    facts: Facts | None
    check: Check | None
    body: tuple[str, str] | None

    @property
    def description(self) -> str:
        return (inspect.getdoc(self.target) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def described_by(self) -> "Component":
        """The component whose signature defines the `config`: this one, unless `body` names another."""
        return self if self.body is None else components(self.body[0])[self.body[1]].described_by


_COMPONENTS: dict[str, dict[str, Component]] = {}


def register(
    kind: str,
    tag: str,
    *,
    ignored: Iterable[str] = (),
    facts: Facts | None = None,
    check: Check | None = None,
    body: tuple[str, str] | None = None,
) -> Callable[[C], C]:
    """Register a component under `{"type": tag}` of `kind`.

    `ignored` keys are accepted with a warning. `facts(config)` returns facts that need no built component.
    `check(config)` yields (key, sentence) for mistakes in the combination of several keys. If `body` names another
    component, the node's config follows that component's signature and is passed as the parameter `config: Part`.
    """
    if kind not in KINDS:
        raise TypeError(f"no kind named {kind!r}; declare it in stable_audio_tools/core/config/kinds.py")

    def enter(target: C) -> C:
        known = _COMPONENTS.setdefault(kind, {})
        if tag in known and _definition(known[tag].target) != _definition(target):
            raise TypeError(f"{kind} {tag!r} is registered twice: {known[tag].target} and {target}")
        known[tag] = Component(kind, tag, target, frozenset(ignored), facts, check, body)
        return target

    return enter


def _definition(target: Factory) -> tuple[str, str]:
    return target.__module__, target.__qualname__


@cache
def _discover(package: str) -> None:
    root = import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", []), f"{package}."):
        import_module(module.name)


def components(kind: str) -> Mapping[str, Component]:
    """Return the registered components of a kind, by tag."""
    for package in KINDS[kind].packages:
        _discover(package)
    return _COMPONENTS.get(kind, {})


def iterate_components() -> Iterator[Component]:
    """Yield the registered components of all kinds."""
    for kind in KINDS:
        yield from (component for _, component in sorted(components(kind).items()))


# ------------------------------------------------------------------ signatures as schemas


class Parameter(NamedTuple):
    name: str
    annotation: Any
    default: object  # ... if it has none
    runtime: bool
    key: str  # its name in the JSON


@cache
def parameters(target: Factory) -> tuple[Parameter, ...]:
    """Return the keyword parameters of a class or function."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    rows = []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in hints:
            raise TypeError(f"{target.__module__}.{target.__qualname__}: parameter {name!r} has no type")
        default = ... if parameter.default is parameter.empty else parameter.default
        is_runtime = _RuntimeMarker in map(type, get_args(hints[name]))
        rows.append(_as_written(Parameter(name, hints[name], default, is_runtime, name)))
    return tuple(rows)


def _as_written(parameter: Parameter) -> Parameter:
    """Return the parameter with the key, type and default it has in the JSON."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    python_type, *marks = get_args(parameter.annotation)
    key = next((mark for mark in marks if isinstance(mark, Key)), None)
    if key is None:
        return parameter
    members = (python_type if key.type is ... else key.type, *(mark for mark in marks if mark is not key))
    default = parameter.default if key.default is ... else key.default
    return Parameter(parameter.name, Annotated[members], default, parameter.runtime, key.name or parameter.name)


STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())


@cache
def schema(kind: str, tag: str) -> type[BaseModel]:
    """Create the pydantic model of a component's `config` from its signature."""
    component = components(kind)[tag].described_by
    fields: JsonObject = {
        p.key: (accept_objects(p.annotation), p.default) for p in parameters(component.target) if not p.runtime
    }
    return create_model(f"{kind}.{tag}", __config__=STRICT, __doc__=component.description, **fields)


class _FromObject:
    """Annotation that lets strict pydantic build a dataclass from a JSON object."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        found = _open_records(handler(source), handler)
        assert found["type"] == "dataclass"
        return found


def _open_records(node: Any, handler: GetCoreSchemaHandler) -> Any:
    """Return a schema that, at any depth, builds records from objects and tuples from lists."""
    if isinstance(node, list):
        return [_open_records(item, handler) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "definition-ref":
        return _open_records(handler.resolve_ref_schema(node), handler)
    opened = {key: _open_records(value, handler) for key, value in node.items() if key != "ref"}
    return {**opened, "strict": False} if node.get("type") in ("dataclass", "tuple") else opened


def accept_objects(annotation: Any) -> Any:
    """Return the annotation, changed so that each dataclass in it is built from a JSON object."""
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
        return Annotated[annotation, _FromObject()]
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return Union[tuple(accept_objects(member) for member in get_args(annotation))]  # noqa: UP007
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        members = (accept_objects(inner), *marks)
        return Annotated[members]
    if get_origin(annotation) in (list, Sequence):
        return get_origin(annotation)[accept_objects(get_args(annotation)[0])]
    return annotation


@cache
def siblings_schema(kind: str) -> type[BaseModel]:
    """Create the pydantic model of the keys next to `type` and `config`."""
    fields: JsonObject = dict(KINDS[kind].siblings)
    return create_model(f"{kind}.siblings", __config__=STRICT, **fields)
