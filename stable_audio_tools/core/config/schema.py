"""JSON Schemas for editors, derived from the signatures that check the configs."""

from collections.abc import Callable, Mapping

from pydantic import BaseModel

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.kinds import KINDS
from stable_audio_tools.core.config.parts import KIND_MARK
from stable_audio_tools.core.config.registry import Component, components, schema, siblings_schema

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/{model}"


Definitions = JsonObject  # schemas of records and kinds, by name
Body = Callable[[str, Definitions], JsonObject]  # (tag, definitions to add to) -> schema of an object


def body_of(kind: str) -> Body:
    """Return a function that gives the schema of a component's keys, by its tag."""
    return lambda tag, definitions: _body(components(kind)[tag], definitions)


def tagged_schema(top: type[BaseModel], tag_key: str, kind: str, bodies: Mapping[str, Body]) -> JsonObject:
    """Return the schema of a file whose key `tag_key` names a component of `kind`, which decides about `bodies`."""
    definitions: Definitions = {}
    document = top.model_json_schema(ref_template=_REFERENCE)
    definitions.update(document.pop("$defs", {}))
    tags = sorted(components(kind))
    document["properties"]["$schema"] = {"type": "string"}
    document["properties"][tag_key]["enum"] = tags
    document["allOf"] = [
        {
            "if": {"properties": {tag_key: {"const": tag}}},
            "then": {"properties": {key: body(tag, definitions) for key, body in bodies.items()}},
        }
        for tag in tags
    ]
    return _finished(document, definitions)


def flat_schema(title: str, kind: str, tag_key: str) -> JsonObject:
    """Return the schema of a file that holds the keys of one component, named by its key `tag_key`."""
    definitions: JsonObject = {}
    variants = []
    for tag, component in sorted(components(kind).items()):
        body = _body(component, definitions)
        body["properties"] = {"$schema": {"type": "string"}, tag_key: {"const": tag}, **body.get("properties", {})}
        body["required"] = [tag_key, *body.get("required", [])]
        variants.append(body)
    return _finished({"title": title, "oneOf": variants}, definitions)


def _finished(document: JsonObject, definitions: JsonObject) -> JsonObject:
    """Add the definitions of all kinds of node that the document refers to, directly or through definitions."""
    wanted = _mentioned(document) | _mentioned(definitions)
    while missing := wanted - set(definitions):
        for kind in missing:
            definitions[kind] = {"oneOf": [_node(c, definitions) for _, c in sorted(components(kind).items())]}
        wanted |= _mentioned(definitions)
    whole = {"$schema": _DIALECT, **document, "$defs": definitions}
    finished = _with_references(whole)
    assert isinstance(finished, dict)
    return finished


def _mentioned(node: object) -> set[str]:
    if isinstance(node, list):
        return set().union(*(_mentioned(item) for item in node)) if node else set()
    if not isinstance(node, dict):
        return set()
    own = {node[KIND_MARK]} if KIND_MARK in node else set()
    return own.union(*(_mentioned(value) for value in node.values())) if node else own


def _with_references(node: object) -> object:
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _with_references(value) for key, value in node.items() if key != KIND_MARK}
    return {"$ref": f"#/$defs/{node[KIND_MARK]}", **changed} if KIND_MARK in node else changed


def _node(component: Component, definitions: JsonObject) -> JsonObject:
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


def _body(component: Component, definitions: JsonObject) -> JsonObject:
    body = schema(component.kind, component.tag).model_json_schema(ref_template=_REFERENCE)
    for name, definition in body.pop("$defs", {}).items():
        assert name not in KINDS, f"the record {name!r} has the name of a kind"
        assert definitions.setdefault(name, definition) == definition, f"two records are named {name!r}"
    for key in sorted(component.ignored):
        body.setdefault("properties", {})[key] = {"description": "has no effect", "deprecated": True}
    return body
