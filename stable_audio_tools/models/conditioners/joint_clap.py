"""Text or latents through a CLAP that was trained here (model type `clap`); it is frozen and in the state dict."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field

from stable_audio_tools.core.config import Runtime, build, register, validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.checkpoints import load_into, open_weights
from stable_audio_tools.models.clap import CLAP
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    OutputDim,
    ProjectOut,
    Values,
    as_token,
    reads,
    require_texts,
)

_Model = Annotated[dict[str, Any], Field(description="the `model` section of the CLAP's config")]
_Weights = Annotated[
    str | None, Field(description="weights of the CLAP; if left out, the weight file of the model must hold them")
]
_Rate = Annotated[int, Field(ge=1, description="sample rate of the CLAP")]
_IGNORED = ("use_model_pretransform",)  # conditions are latents already


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    try:
        validate("model", {"type": "clap", "config": config.model}, "")
    except ConfigError as error:
        for problem in error.problems:
            yield "model", str(problem)


def _build(model: Mapping[str, Any], ckpt_path: str | None, sample_rate: int) -> CLAP:
    clap: CLAP = build("model", {"type": "clap", "config": dict(model)}, "model", sample_rate=sample_rate)
    if ckpt_path is not None:
        load_into(clap, open_weights(ckpt_path))
    return clap.eval().requires_grad_(False)


@register("conditioner", "sat_clap_text", facts=reads("text"), check=_check, ignored=_IGNORED)
class SATCLAPTextConditioner(Conditioner):
    """Text through the text half: one vector, or with `use_text_features` the states of a layer."""

    def __init__(
        self,
        model: _Model,
        output_dim: OutputDim = None,
        project_out: ProjectOut = False,
        use_text_features: Annotated[bool, Field(description="condition on tokens instead of one vector")] = False,
        feature_layer_ix: Annotated[int, Field(description="which layer's states, counted as in a list")] = -2,
        ckpt_path: _Weights = None,
        sample_rate: _Rate = 44100,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        clap = _build(model, ckpt_path, sample_rate)
        width = clap.text_branch.embed_dim if use_text_features else clap.joint_embed_dim
        super().__init__(int(width), output_dim, project_out, cond_dim)  # type: ignore[arg-type]
        self.use_text_features, self.feature_layer_ix = use_text_features, feature_layer_ix
        del clap.audio_branch, clap.pretransform
        self.model = clap

    def encode(self, values: Values) -> Condition:
        texts = require_texts(values)
        with torch.no_grad():
            if not self.use_text_features:
                return as_token(self.project(self.model.get_text_embedding(texts)[:, None])[:, 0])
            features: Any = self.model.text_branch.get_text_features
            states, mask = features(texts, layer_ix=self.feature_layer_ix)
        return Condition(self.project(states), mask.bool())


@register("conditioner", "sat_clap_audio", facts=reads("other"), check=_check, ignored=_IGNORED)
class SATCLAPAudioConditioner(Conditioner):
    """Latents (d, t) of each item through the audio half: one vector."""

    def __init__(
        self,
        model: _Model,
        output_dim: OutputDim = None,
        project_out: ProjectOut = False,
        ckpt_path: _Weights = None,
        sample_rate: _Rate = 44100,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        clap = _build(model, ckpt_path, sample_rate)
        super().__init__(clap.joint_embed_dim, output_dim, project_out, cond_dim)
        del clap.text_branch
        self.model = clap

    def encode(self, values: Values) -> Condition:
        latents = torch.stack([torch.as_tensor(value) for value in values])
        with torch.no_grad():
            vectors = self.model.get_audio_embedding(latents.to(self.model.logit_scale_a))
        return as_token(self.project(vectors[:, None])[:, 0])
