"""JSON Schemas for editors (completion, red underlines), from the same signatures that check the configs."""

from typing import Any

from pydantic import BaseModel

from stable_audio_tools.config.kinds import KINDS
from stable_audio_tools.config.registry import Component, components, schema, siblings_schema

_REFERENCE = "#/$defs/{model}"


def tagged_schema(top: type[BaseModel], kind: str, tag_key: str, body_key: str) -> dict[str, Any]:
    """The schema of a file whose key `tag_key` says which component of `kind` stands under `body_key`."""
    definitions = _definitions(kind)
    document = top.model_json_schema(ref_template=_REFERENCE)
    definitions.update(document.pop("$defs", {}))
    document["properties"]["$schema"] = {"type": "string"}
    document["properties"][tag_key]["enum"] = sorted(components(kind))
    document["allOf"] = [
        {
            "if": {"properties": {tag_key: {"const": tag}}},
            "then": {"properties": {body_key: _body(component, definitions)}},
        }
        for tag, component in sorted(components(kind).items())
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document, "$defs": definitions}


def flat_schema(title: str, kind: str, tag_key: str) -> dict[str, Any]:
    """The schema of a file whose keys are those of the component that its key `tag_key` names."""
    definitions = _definitions(kind)
    variants = []
    for tag, component in sorted(components(kind).items()):
        body = _body(component, definitions)
        body["properties"] = {"$schema": {"type": "string"}, tag_key: {"const": tag}, **body.get("properties", {})}
        body["required"] = [tag_key, *body.get("required", [])]
        variants.append(body)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "oneOf": variants,
        "$defs": definitions,
    }


def _definitions(root: str) -> dict[str, Any]:
    """One definition per kind of tagged node: its variants, with the keys that stand beside `config`."""
    definitions: dict[str, Any] = {}
    for kind in KINDS:
        if kind == root:
            continue
        definitions[kind] = {
            "oneOf": [_node(component, definitions) for _, component in sorted(components(kind).items())]
        }
    return definitions


def _node(component: Component, definitions: dict[str, Any]) -> dict[str, Any]:
    siblings = siblings_schema(component.kind).model_json_schema(ref_template=_REFERENCE)
    config = _body(component, definitions)
    return {
        "title": component.tag,
        "description": component.description,
        "type": "object",
        "properties": {"type": {"const": component.tag}, "config": config, **siblings.get("properties", {})},
        "required": ["type", *siblings.get("required", []), *(["config"] if config.get("required") else [])],
        "additionalProperties": False,
    }


def _body(component: Component, definitions: dict[str, Any]) -> dict[str, Any]:
    body = schema(component.kind, component.tag).model_json_schema(ref_template=_REFERENCE)
    for name, definition in body.pop("$defs", {}).items():
        assert definitions.setdefault(name, definition) == definition, f"two records are named {name!r}"
    for key in sorted(component.ignored):
        body.setdefault("properties", {})[key] = {"description": "has no effect", "deprecated": True}
    return body
