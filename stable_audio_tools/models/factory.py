"""The top level of a model config, and the published functions that build models from configs."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from stable_audio_tools.core.config import Part, build, components, load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.parts import as_error, examine_body, place
from stable_audio_tools.core.config.sentences import Problem, nearest, sentences, show
from stable_audio_tools.core.errors import ConfigError

logger = logging.getLogger(__name__)


# Use of a model: the entry "use" of its facts, which engine and app read.
ModelUse = Literal["conditional diffusion", "unconditional diffusion", "codec", "language model"]


class ModelFile(BaseModel):
    """The top level of a model config."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model_type: Annotated[str, Field(description="which family of model this is")]
    sample_rate: Annotated[int, Field(ge=1, description="samples per second of the audio")]
    sample_size: Annotated[int | None, Field(ge=1, description="samples of a training or generation window")] = None
    audio_channels: Annotated[int, Field(ge=1, description="channels that the data loader delivers")] = 2
    model: Annotated[JsonObject, Field(description="the model itself, by the keys of its type")]
    training: Annotated[JsonObject | None, Field(description="how train.py trains it")] = None
    lora: Annotated[JsonObject | None, Field(description="low-rank adapters for train_lora.py")] = None


def check_model_config(config: Mapping[str, Any]) -> tuple[ModelFile, Part]:
    """Check a whole model config; one ConfigError lists every mistake."""
    problems: list[Problem] = []
    top, part = None, None
    try:
        top = ModelFile.model_validate({key: value for key, value in config.items() if key != "$schema"})
    except ValidationError as error:
        problems += [(where.lstrip("."), text) for where, text in sentences(error, "", ModelFile)]
    tag, known = config.get("model_type"), components("model")
    if isinstance(tag, str) and tag not in known:
        problems.append(("model_type", f"no model type named {show(tag)}; {nearest(tag, known)}"))
    elif isinstance(tag, str) and isinstance(config.get("model"), Mapping):
        part, found = examine_body("model", tag, config["model"], "model")
        problems += found
    if part is not None and top is not None:
        place(part, "model", "model")
        problems += _check_sample_size(top, part)
    if problems or top is None or part is None:
        raise as_error(problems)
    return top, part


def _check_sample_size(top: ModelFile, part: Part) -> list[Problem]:
    shortest = part.facts.get("min_input_length")
    if not top.sample_size or not shortest or top.sample_size % shortest == 0:
        return []
    below = top.sample_size // shortest * shortest
    valid = f"{below} or {below + shortest}" if below else str(shortest)
    text = f"is {top.sample_size}, but the model works in steps of {shortest} samples; use {valid}"
    if below:
        logger.warning("sample_size: %s", text)
        return []
    return [("sample_size", text)]


def create_model_from_config(model_config: Mapping[str, Any]) -> nn.Module:
    """Check a model config and build the model, with random weights."""
    top, part = check_model_config(model_config)
    model: nn.Module = part.build(sample_rate=top.sample_rate, sample_size=top.sample_size, model_type=top.model_type)
    return model


def create_model_from_config_path(model_config_path: str | Path) -> nn.Module:
    """Read a model config file and build the model, with random weights."""
    config = load(model_config_path)
    try:
        return create_model_from_config(config)
    except ConfigError as error:
        raise ConfigError(f"{model_config_path}: {problem}" for problem in error.problems) from None


def create_pretransform_from_config(pretransform_config: Mapping[str, Any], sample_rate: int) -> nn.Module:
    """Build one `pretransform` node."""
    pretransform: nn.Module = build("pretransform", pretransform_config, sample_rate=sample_rate)
    return pretransform


def create_bottleneck_from_config(bottleneck_config: Mapping[str, Any]) -> nn.Module:
    """Build one `bottleneck` node."""
    bottleneck: nn.Module = build("bottleneck", bottleneck_config)
    return bottleneck
