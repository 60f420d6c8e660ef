"""From the `training` section of a model config to the module that trains, its callbacks and its JSON Schema."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from stable_audio_tools.core.config import Part, components
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.parts import as_error, examine_body, place
from stable_audio_tools.core.config.schema import Definitions, body_of
from stable_audio_tools.core.config.sentences import Problem, sentences, show
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.training.callbacks.demos import DemoCallback
from stable_audio_tools.training.callbacks.progress import ProgressBar
from stable_audio_tools.training.callbacks.song_describer import SongDescriberCallback
from stable_audio_tools.training.module import TrainingModule


class SharedKeys(BaseModel):
    """Keys of `training` that every model type has."""

    model_config = ConfigDict(extra="forbid", strict=True)

    demo: Annotated[JsonObject | None, Field(description="demos during training; enabled: false switches them off")] = (
        None
    )
    song_describer_eval: Annotated[
        JsonObject | None, Field(description="scores on captioned music during training")
    ] = None
    checkpoint: Annotated[
        JsonObject | None, Field(description="every_n_train_steps and save_top_k, unless the flags set them")
    ] = None
    tqdm: Annotated[JsonObject | None, Field(description="refresh_rate of the progress bar")] = None
    logging: Annotated[JsonObject | None, Field(description="log_every: steps between logged values")] = None


@dataclasses.dataclass(frozen=True)
class TrainingSection:
    """The checked `training` section."""

    shared: SharedKeys
    training: Part
    demo: Part | None
    song_describer_eval: Part | None = None


def check_training_config(model_config: JsonObject) -> TrainingSection:
    """Check the `training` section; every mistake is in the one ConfigError."""
    model_type, section = model_config.get("model_type"), model_config.get("training")
    if not isinstance(section, Mapping):
        raise ConfigError(f"training: expected an object that says how to train the model, got {show(section)}")
    if model_type not in components("training"):
        raise ConfigError(
            f"model_type: {show(model_type)} cannot be trained; known: {', '.join(components('training'))}"
        )
    tag = "arc" if "arc" in section else str(model_type)
    common = {key: value for key, value in section.items() if key in SharedKeys.model_fields}
    problems: list[Problem] = []
    try:
        shared = SharedKeys.model_validate(common)
    except ValidationError as error:
        problems += sentences(error, "training", SharedKeys)
        shared = SharedKeys()
    own = {key: value for key, value in section.items() if key not in common}
    training, found = examine_body("training", tag, own, "training")
    problems += found
    demo, enabled = None, True
    if shared.demo is not None:
        enabled = shared.demo.get("enabled", True)
        if not isinstance(enabled, bool):
            problems.append(("training.demo.enabled", f"expected true or false, got {show(enabled)}"))
        body = {key: value for key, value in shared.demo.items() if key != "enabled"}
        demo, found = examine_body("demo", str(model_type), body, "training.demo")
        problems += found
    judged, found = _examine_captions(str(model_type), shared.song_describer_eval)
    problems += found
    if problems or training is None:
        raise as_error(problems)
    place(training, "training", "training")
    if demo is not None:
        place(demo, "training.demo", "training.demo")
    return TrainingSection(shared, training, demo if enabled else None, judged)


def _examine_captions(model_type: str, section: JsonObject | None) -> tuple[Part | None, list[Problem]]:
    if section is None:
        return None, []
    path = "training.song_describer_eval"
    part, problems = examine_body("evaluation", "song_describer", section, path)
    if section.get("enabled", True) and not model_type.startswith("diffusion_cond"):
        problems.append((path, f"models of type {model_type!r} take no captions; remove this section"))
    if part is not None:
        place(part, path, path)
    return part, problems


def create_training_wrapper_from_config(
    model_config: JsonObject, model: nn.Module, accum_batches: int = 1, gradient_clip_val: float = 0.0
) -> TrainingModule:
    """Build the Lightning module that trains `model` as the `training` section of the config says."""
    wrapper: TrainingModule = check_training_config(model_config).training.build(
        model=model,
        model_config=dict(model_config),
        model_type=model_config["model_type"],
        sample_rate=model_config["sample_rate"],
        accum_batches=accum_batches,
        gradient_clip_val=gradient_clip_val,
        discriminator=None,  # ARC builds the critic that its section names
    )
    return wrapper


def create_tqdm_callback_from_config(model_config: JsonObject, **options: int | float | bool) -> ProgressBar:
    """Build the progress bar with the options of `training.tqdm`."""
    return ProgressBar(**{**(check_training_config(model_config).shared.tqdm or {}), **options})


def create_song_describer_callback_from_config(
    model_config: JsonObject, folder: Path | None = None
) -> SongDescriberCallback | None:
    """Build the callback that evaluates captions as `training.song_describer_eval` says; None if it is off."""
    section = check_training_config(model_config)
    if section.song_describer_eval is None:
        return None
    callback: SongDescriberCallback | None = section.song_describer_eval.build(
        sample_size=model_config["sample_size"], demo=section.demo, folder=folder
    )
    return callback


create_song_describer_eval_callback_from_config = create_song_describer_callback_from_config  # the published name


def create_demo_callback_from_config(
    model_config: JsonObject, demo_dl: Iterable[Batch] | None = None, folder: Path | None = None
) -> DemoCallback | None:
    """Build the callback of demos as `training.demo` says; None without such a section."""
    part = check_training_config(model_config).demo
    if part is None:
        return None
    callback: DemoCallback = part.build(
        sample_size=model_config["sample_size"], sample_rate=model_config["sample_rate"], folder=folder, demo_dl=demo_dl
    )
    return callback


def training_body(model_type: str, definitions: Definitions) -> JsonObject:
    """Return the schema of `training` for a model type: the keys of its wrapper, or those of ARC with `arc`."""
    if model_type not in components("training"):
        return {"type": ["object", "null"]}
    usual, arc = (_with_shared_keys(tag, model_type, definitions) for tag in (model_type, "arc"))
    section = {"if": {"required": ["arc"]}, "then": arc, "else": usual}
    return {"anyOf": [{"type": "null"}, {"type": "object", **section}]}


def _with_shared_keys(tag: str, model_type: str, definitions: Definitions) -> JsonObject:
    body = body_of("training")(tag, definitions)
    shared = SharedKeys.model_json_schema()["properties"]
    if model_type in components("demo"):
        demo = body_of("demo")(model_type, definitions)
        demo["properties"] = {"enabled": {"type": "boolean"}, **demo.get("properties", {})}
        shared["demo"] = {"anyOf": [{"type": "null"}, demo]}
    judged = body_of("evaluation")("song_describer", definitions)
    shared["song_describer_eval"] = {"anyOf": [{"type": "null"}, judged]}
    return {**body, "properties": {**shared, **body.get("properties", {})}}
