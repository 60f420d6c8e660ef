"""What can be asked of a model, from its config alone: length, conditions, sampling settings."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from stable_audio_tools.core.config import Part
from stable_audio_tools.core.config.sentences import nearest, show
from stable_audio_tools.models.diffusion.objectives import Objective, Recommended, parse_objective
from stable_audio_tools.models.factory import check_model_config

InputKind = Literal["text", "number", "integer", "choice", "audio", "other"]

_KINDS: dict[str, InputKind] = {
    "t5": "text",
    "clap_text": "text",
    "phoneme": "text",
    "lut": "text",
    "number": "number",
    "int": "integer",
    "list": "choice",
    "pretransform": "audio",
    "clap_audio": "audio",
}
_WORDS: dict[InputKind, str] = {
    "text": "a text",
    "number": "a number",
    "integer": "a whole number",
    "choice": "one of its names",
    "audio": "the path of an audio file",
    "other": "a value",
}
_LARGEST: dict[InputKind, float] = {"number": 1e308, "integer": 2**63 - 1}  # what a float and a tensor hold


@dataclass(frozen=True)
class Input:
    """One condition that a model reads; `options` are the names that a choice knows."""

    kind: InputKind
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """`window`: samples that the model makes at once; `inputs`: conditions by the key that they are given under."""

    model_type: str
    sample_rate: int
    window: int | None = None
    objective: Objective | None = None
    inputs: Mapping[str, Input] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    inpaints: bool = False

    @property
    def window_seconds(self) -> float:
        return math.inf if self.window is None else self.window / self.sample_rate

    @property
    def recommended(self) -> Recommended | None:
        return None if self.objective is None else self.objective.recommended

    @property
    def has_steps(self) -> bool:
        """Does the model denoise in steps?"""
        return self.objective is not None or self.model_type == "diffusion_autoencoder"

    @property
    def keys(self) -> list[str]:
        """Every key that a condition can be given under."""
        return list(dict.fromkeys([*self.inputs, *self.stand_ins.values()]))

    def input_of(self, key: str) -> Input:
        """What a key means; a stand-in means what it stands for."""
        if key in self.inputs:
            return self.inputs[key]
        return next((self.input_of(id) for id, other in self.stand_ins.items() if other == key), Input("other"))

    def check_conditions(self, values: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the conditions of one item, a sentence each."""
        for key, value in values.items():
            if key not in self.keys:
                yield f"{key}: unknown key; {nearest(key, self.keys)}"
            elif isinstance(value, int) and abs(value) > (most := _LARGEST.get(self.input_of(key).kind, math.inf)):
                yield f"{key}: is out of range; write a number between {-most:.0e} and {most:.0e}"
            elif not _fits(self.input_of(key), value):
                yield f"{key}: expected {_WORDS[self.input_of(key).kind]}, got {show(value)}"
        for id in self.inputs:
            chain = [id]
            while chain[-1] not in values and self.stand_ins.get(chain[-1]) not in (None, *chain):
                chain.append(self.stand_ins[chain[-1]])
            if chain[-1] not in values:
                yield f"{id}: missing; the model needs {_WORDS[self.inputs[id].kind]}"

    def check_seconds(self, seconds: float, name: str = "seconds") -> Iterator[str]:
        """Lengths are counted in whole seconds, rounded up, so the last one of the window may be a part of one."""
        if not seconds > 0 or math.isinf(seconds):
            yield f"{name}: expected more than 0 seconds, got {seconds:g}"
        elif seconds * self.sample_rate < 1:
            yield f"{name}: is {seconds:g} s, less than a sample; ask for more"
        elif self.window is not None and seconds > math.ceil(self.window_seconds):
            yield f"{name}: is {seconds:g} s, and the model makes at most {self.window_seconds:.2f} s; ask for less"

    def check_told_length(self, values: Mapping[str, Any]) -> Iterator[str]:
        """A piece that a model is told of ends after its start."""
        told = seconds_told(values)
        if told is not None and not told > 0:
            yield f"seconds_total: is {told:g} s after seconds_start; expected more than 0 seconds"

    def warnings(self, values: Mapping[str, Any]) -> Iterator[str]:
        """What the model cannot do of what it is told: lengths beyond its window, names that a choice does not know."""
        told = seconds_told(values)
        if told is not None and self.window is not None and told > math.ceil(self.window_seconds):
            yield f"seconds_total: the model is told of {told:g} s, and makes the first {self.window_seconds:.2f} s"
        for key, value in values.items():
            options = self.input_of(key).options
            if options and value not in options:
                yield f"{key}: the model was not trained with {show(value)}; {nearest(str(value), options)}"


def seconds_told(values: Mapping[str, Any]) -> float | None:
    """The length that conditions tell: from where the piece begins to be made to where it ends."""
    total, start = values.get("seconds_total"), values.get("seconds_start", 0)
    if not isinstance(total, int | float) or not isinstance(start, int | float):
        return None
    try:
        return float(total - start)
    except OverflowError:  # an integer beyond all lengths
        return math.inf


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """The facts of a model config, which is checked whole."""
    top, part = check_model_config(config)
    conditioning = getattr(part.config, "conditioning", None)
    diffusion = getattr(part.config, "diffusion", None)
    routed = [id for ids in vars(getattr(diffusion, "siblings", SimpleNamespace())).values() for id in _listed(ids)]
    objective = _objective(part)
    return ModelFacts(
        model_type=top.model_type,
        sample_rate=top.sample_rate,
        # The sample_size of an autoencoder is that of its training; it takes any length.
        window=top.sample_size if objective is not None or part.type == "lm" else None,
        objective=objective,
        inputs={} if conditioning is None else {node.siblings.id: _input(node) for node in conditioning.configs},
        stand_ins={} if conditioning is None else dict(conditioning.default_keys),
        inpaints="inpaint_masked_input" in routed,
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _input(node: Part) -> Input:
    return Input(_KINDS.get(node.type, "other"), tuple(getattr(node.config, "options", ())))


def _objective(part: Part) -> Objective | None:
    """None for models that are not sampled by diffusion."""
    config = part.config
    if part.type == "diffusion_uncond":
        return parse_objective(config.diffusion_objective or (config.config or {}).get("diffusion_objective", "v"))
    told = getattr(getattr(getattr(config, "diffusion", None), "siblings", None), "diffusion_objective", None)
    return None if told is None else parse_objective(told)


def _fits(wanted: Input, value: Any) -> bool:
    if wanted.kind in ("text", "choice"):
        return isinstance(value, str)
    if wanted.kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if wanted.kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return value is not None
