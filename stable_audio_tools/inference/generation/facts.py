"""Facts of a model from its config alone: length, conditions, sampling settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from stable_audio_tools.core.config import Part
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.inference.generation.request import Suits
from stable_audio_tools.models.conditioners.base import InputKind
from stable_audio_tools.models.diffusion.objectives import Objective, Recommended, parse_objective
from stable_audio_tools.models.factory import ModelUse, check_model_config


@dataclass(frozen=True)
class Input:
    """One condition that a model takes; `options` are the names that a choice knows."""

    kind: InputKind
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model. `window`: samples that it generates at once; `inputs`: conditions by their keys."""

    model_type: str
    sample_rate: int
    window: int | None = None
    objective: Objective | None = None
    inputs: Mapping[str, Input] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    inpaints: bool = False
    use: ModelUse = "conditional diffusion"
    has_steps: bool = True  # whether the model denoises in steps

    @property
    def window_seconds(self) -> float:
        return math.inf if self.window is None else self.window / self.sample_rate

    @property
    def recommended(self) -> Recommended | None:
        return None if self.objective is None else self.objective.recommended

    @property
    def keys(self) -> list[str]:
        """Every key of a condition, stand-ins included."""
        return list(dict.fromkeys([*self.inputs, *self.stand_ins.values()]))

    def input_of(self, key: str) -> Input:
        """Return the input of a key; a stand-in has the input that it replaces."""
        if key in self.inputs:
            return self.inputs[key]
        return next((self.input_of(id) for id, other in self.stand_ins.items() if other == key), Input("other"))

    @property
    def is_codec(self) -> bool:
        """The model only encodes and decodes audio."""
        return self.use == "codec"

    def suits(self, suits: Suits) -> bool:
        """Return whether fields of a request that suit such models have an effect on this one."""
        return {
            "every": True,
            "diffusion": self.objective is not None,
            "guided diffusion": self.use == "conditional diffusion",
            "steps": self.has_steps,
            "conditions": bool(self.inputs),
            "language": self.use == "language model",
            "codec": self.is_codec,
        }[suits]


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """Check a model config and return its facts."""
    top, part = check_model_config(config)
    conditioning = getattr(part.config, "conditioning", None)
    diffusion = getattr(part.config, "diffusion", None)
    routed = [id for ids in vars(getattr(diffusion, "siblings", SimpleNamespace())).values() for id in _listed(ids)]
    objective = _objective(part)
    use: ModelUse | None = part.facts.get("use")
    if use is None:
        raise UserError(f"model_type: a model of type {top.model_type!r} generates nothing")
    return ModelFacts(
        model_type=top.model_type,
        sample_rate=top.sample_rate,
        # The sample_size of an autoencoder belongs to its training; it takes any length.
        window=top.sample_size if use != "codec" else None,
        objective=objective,
        inputs={}
        if conditioning is None
        else {
            node.siblings.id: Input(node.facts.get("input", "other"), node.facts.get("options", ()))
            for node in conditioning.configs
        },
        stand_ins={} if conditioning is None else dict(conditioning.default_keys),
        inpaints="inpaint_masked_input" in routed,
        use=use,
        has_steps=part.facts.get("has_steps", False),
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _objective(part: Part) -> Objective | None:
    """None for models that are not sampled by diffusion."""
    config = part.config
    if part.type == "diffusion_uncond":
        return parse_objective(config.diffusion_objective or (config.config or {}).get("diffusion_objective", "v"))
    told = getattr(getattr(getattr(config, "diffusion", None), "siblings", None), "diffusion_objective", None)
    return None if told is None else parse_objective(told)
