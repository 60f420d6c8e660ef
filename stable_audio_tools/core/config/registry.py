"""The registry: `@register(kind, tag)` enters a class or function whose signature is the schema of its JSON."""

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

from stable_audio_tools.core.config.kinds import KINDS

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


class _RuntimeMarker:
    """Marks a parameter that the JSON does not hold."""


Runtime = Annotated[T, _RuntimeMarker()]


@dataclasses.dataclass(frozen=True)
class Key:
    """How the JSON, or the program for a `Runtime` value, writes a parameter: its key, type or default there."""

    name: str = ""
    type: Any = ...
    default: Any = ...


@dataclasses.dataclass(frozen=True)
class Component:
    """One registered class or function, and what is known of its config without building it."""

    kind: str
    tag: str
    target: Callable[..., Any]
    ignored: frozenset[str]
    facts: Callable[[SimpleNamespace], dict[str, Any]] | None
    check: Callable[[SimpleNamespace], Iterable[tuple[str, str]]] | None
    body: tuple[str, str] | None

    @property
    def description(self) -> str:
        return (inspect.getdoc(self.target) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def described_by(self) -> "Component":
        """The component whose signature this one's `config` follows: itself, unless `body` names another."""
        return self if self.body is None else components(self.body[0])[self.body[1]].described_by


_COMPONENTS: dict[str, dict[str, Component]] = {}


def register(
    kind: str,
    tag: str,
    *,
    ignored: Iterable[str] = (),
    facts: Callable[[SimpleNamespace], dict[str, Any]] | None = None,
    check: Callable[[SimpleNamespace], Iterable[tuple[str, str]]] | None = None,
    body: tuple[str, str] | None = None,
) -> Callable[[C], C]:
    """Enter a component under `{"type": tag}` of `kind`.

    `ignored` keys are accepted with a warning that names them. `facts(config)` gives numbers known without building.
    `check(config)` yields (key, sentence) for mistakes that only several keys together show. With `body` the node's
    config is that other component's, and the target receives it as one parameter `config: Part`.
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


def _definition(target: Callable[..., Any]) -> tuple[str, str]:
    return target.__module__, target.__qualname__


@cache
def _discover(package: str) -> None:
    root = import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", []), f"{package}."):
        import_module(module.name)


def components(kind: str) -> Mapping[str, Component]:
    """Every registered component of a kind, by tag."""
    for package in KINDS[kind].packages:
        _discover(package)
    return _COMPONENTS.get(kind, {})


def iterate_components() -> Iterator[Component]:
    """Every registered component of every kind."""
    for kind in KINDS:
        yield from (component for _, component in sorted(components(kind).items()))


# ------------------------------------------------------------------ signatures as schemas


class Parameter(NamedTuple):
    name: str
    annotation: Any
    default: Any  # ... where there is none
    runtime: bool
    key: str  # its name in the JSON


@cache
def parameters(target: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The keyword parameters of a class or function."""
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
    """The parameter with key, type and default of the JSON."""
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
    """The pydantic model of a component's `config`, from its signature."""
    component = components(kind)[tag].described_by
    fields: dict[str, Any] = {
        p.key: (accept_objects(p.annotation), p.default) for p in parameters(component.target) if not p.runtime
    }
    return create_model(f"{kind}.{tag}", __config__=STRICT, __doc__=component.description, **fields)


class _FromObject:
    """Strict pydantic wants instances of a dataclass; JSON holds objects."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        found = _open_records(handler(source), handler)
        assert found["type"] == "dataclass"
        return found


def _open_records(node: Any, handler: GetCoreSchemaHandler) -> Any:
    """A schema in which every record, at any depth, is made from an object, and every tuple from a list."""
    if isinstance(node, list):
        return [_open_records(item, handler) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "definition-ref":
        return _open_records(handler.resolve_ref_schema(node), handler)
    opened = {key: _open_records(value, handler) for key, value in node.items() if key != "ref"}
    return {**opened, "strict": False} if node.get("type") in ("dataclass", "tuple") else opened


def accept_objects(annotation: Any) -> Any:
    """The annotation, with every record (dataclass) in it made from a JSON object."""
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
    """The pydantic model of the keys that stand beside `type` and `config`."""
    fields: dict[str, Any] = dict(KINDS[kind].siblings)
    return create_model(f"{kind}.siblings", __config__=STRICT, **fields)
