"""Sentences for the findings of pydantic: the place, the value, what is allowed, the closest valid name."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Problem = tuple[str, str]  # (path, sentence)

_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} characters",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}
_TYPES = {
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "dataclass_exact_type": "an object",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "is_instance_of": "a list",
    "list_type": "a list",
    "model_type": "an object",
    "none_required": "null",
    "string_type": "a string",
    "tuple_type": "a list",
}
# pydantic puts the name of a union's member into the location; the others hold brackets ("list[int]").
_UNION_MEMBERS = frozenset(
    {"bool", "int", "float", "str", "dict", "list", "none", "constrained-int", "constrained-float"}
)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the closest known one, or all."""
    options = sorted(known)
    close = difflib.get_close_matches(str(name), options, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"allowed: {', '.join(options)}" if options else "nothing is allowed here"


def show(value: object) -> str:
    """Format a value as in the JSON, shortened."""
    if isinstance(value, Mapping):
        return f"an object with keys {', '.join(map(str, list(value)[:4]))}" if value else "an empty object"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def sentences(
    error: ValidationError, path: str, model: type[BaseModel], reserved: tuple[str, ...] = ()
) -> list[Problem]:
    """Return each finding of `error` as (path, sentence); alternatives for one value are joined by "or"."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        steps = item["loc"]
        keys = [s for i, s in enumerate(steps) if _is_key(s) or _ends_in_unknown_key(item, i)]
        where = path + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in keys)
        if item["type"] == "part":
            for below, text in item["ctx"]["problems"]:
                found.setdefault(f"{where}{below}", []).append(text)
        else:
            found.setdefault(where, []).append(_sentence(item, model, reserved))
    return [(where, _joined(texts)) for where, texts in found.items()]


def _is_key(step: int | str) -> bool:
    return isinstance(step, int) or not ("[" in step or step in _UNION_MEMBERS)


def _ends_in_unknown_key(item: ErrorDetails, index: int) -> bool:
    return index == len(item["loc"]) - 1 and item["type"] in ("extra_forbidden", "unexpected_keyword_argument")


def _joined(texts: list[str]) -> str:
    texts = list(dict.fromkeys(texts))
    tails = {text.rpartition(", got ")[2] for text in texts}
    if len(texts) > 1 and len(tails) == 1 and all(text.startswith("expected ") for text in texts):
        wanted = " or ".join(text.removeprefix("expected ").rpartition(", got ")[0] for text in texts)
        return f"expected {wanted}, got {tails.pop()}"
    return "; or ".join(texts)


def _sentence(item: ErrorDetails, model: type[BaseModel], reserved: tuple[str, ...]) -> str:
    error, context, got = item["type"], item.get("ctx") or {}, show(item["input"])
    if error in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [*_fields_at(model, item["loc"][:-1]), *reserved]
        return f"unknown key; {nearest(str(item['loc'][-1]), known)}"
    if error in ("missing", "missing_argument", "missing_keyword_only_argument"):
        info = model.model_fields.get(str(item["loc"][-1]))
        return (
            f"missing; it is required ({info.description})" if info and info.description else "missing; it is required"
        )
    if error == "literal_error":
        return f"expected {context['expected']}, got {got}"
    if error in _BOUNDS:
        return f"expected {_BOUNDS[error].format(**context)}, got {got}"
    if error in _TYPES:
        return f"expected {_TYPES[error]}, got {got}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    sentence = f"{message[:1].lower()}{message[1:]}"
    return sentence if isinstance(item["input"], dict) else f"{sentence}, got {got}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed in the record at `location`."""
    fields: Mapping[str, object] = model.model_fields
    for step in location:
        if isinstance(step, str) and step in fields:
            entry = fields[step]
            fields = _record(entry.annotation if isinstance(entry, FieldInfo) else entry) or {}
    return list(fields)


def _record(annotation: object) -> Mapping[str, object] | None:
    """Return the fields of the first dataclass or TypedDict in an annotation."""
    if inspect.isclass(annotation) and getattr(annotation, "__annotations__", None):
        return get_type_hints(annotation, include_extras=True)
    for inner in get_args(annotation):
        if (found := _record(inner)) is not None:
            return found
    return None
