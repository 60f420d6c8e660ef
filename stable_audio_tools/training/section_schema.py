"""The JSON Schema of the `training` section of a model config, for editors."""

from typing import Any

from stable_audio_tools.core.config import components
from stable_audio_tools.core.config.schema import Definitions, body_of
from stable_audio_tools.training.factory import SharedKeys


def training_body(model_type: str, definitions: Definitions) -> dict[str, Any]:
    """What `training` may hold for a model type: the keys of its wrapper, or those of ARC where it has `arc`."""
    if model_type not in components("training"):
        return {"type": ["object", "null"]}
    usual, arc = (_with_shared_keys(tag, model_type, definitions) for tag in (model_type, "arc"))
    section = {"if": {"required": ["arc"]}, "then": arc, "else": usual}
    return {"anyOf": [{"type": "null"}, {"type": "object", **section}]}


def _with_shared_keys(tag: str, model_type: str, definitions: Definitions) -> dict[str, Any]:
    body = body_of("training")(tag, definitions)
    shared = SharedKeys.model_json_schema()["properties"]
    if model_type in components("demo"):
        demo = body_of("demo")(model_type, definitions)
        demo["properties"] = {"enabled": {"type": "boolean"}, **demo.get("properties", {})}
        shared["demo"] = {"anyOf": [{"type": "null"}, demo]}
    judged = body_of("evaluation")("song_describer", definitions)
    shared["song_describer_eval"] = {"anyOf": [{"type": "null"}, judged]}
    return {**body, "properties": {**shared, **body.get("properties", {})}}
