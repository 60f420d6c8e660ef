"""CLAP over latents: a transformer for audio and a text encoder meet in one space (Wu et al. 2023).

With a `noise_config` the audio half also takes noised latents and their noise level.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import Key, Kind, Part, Runtime, as_record, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.conditioners.hub import (
    WEIGHT_FILES,
    load_pretrained,
    only_shapes_wanted,
    read_pretrained_config,
)
from stable_audio_tools.models.conditioners.text import load_tokenizer
from stable_audio_tools.models.fourier import FourierFeatures
from stable_audio_tools.models.pretransforms import Pretransform
from stable_audio_tools.models.transformer import ContinuousTransformer
from stable_audio_tools.models.transformer.blocks import AttentionOptions, FeedForwardOptions, NormOptions
from stable_audio_tools.models.transformer.norms import NormType

Pooling = Literal["cls_prepend", "avg_pool"]
_NOISE_FEATURES = 256
_TEMPERATURE = 0.07  # at the start of training


@dataclass(frozen=True)
class NoiseLevels:
    """Settings of training the audio half on noised latents."""

    embed_dim: Annotated[int, Field(ge=1, description="width of the embedded noise level")] = 64
    interp_type: Annotated[Literal["linear"], Field(description="how training mixes latents and noise")] = "linear"


class LatentTransformerCLAPAudioBranch(nn.Module):
    """Latents (b, d, t) -> one vector (b, embed_dim): the state of a class token, or the mean of all states."""

    def __init__(
        self,
        embed_dim: int,
        embed_type: Pooling = "cls_prepend",
        noise_config: NoiseLevels | Mapping[str, Any] | None = None,
        max_length: int = 1024,
        **transformer_options: Any,
    ) -> None:
        """Other options are those of `ContinuousTransformer`; `max_length` is kept as a fact."""
        super().__init__()
        self.embed_dim, self.max_length, self.embed_type = embed_dim, max_length, embed_type
        self.noise_config = None if noise_config is None else as_record(NoiseLevels, noise_config, "noise_config")
        if self.noise_config is not None:
            self.noise_features = FourierFeatures(1, _NOISE_FEATURES, trained=False)
            self.to_noise_embed = nn.Linear(_NOISE_FEATURES, self.noise_config.embed_dim)
            transformer_options["global_cond_dim"] = self.noise_config.embed_dim
        self.transformer = ContinuousTransformer(embed_dim, **transformer_options)
        if embed_type == "cls_prepend":
            self.cls_embedding = nn.Parameter(torch.randn(1, 1, embed_dim))

    def forward(
        self,
        latents: Tensor,
        mask: Tensor | None = None,
        noise_levels: Tensor | None = None,
        return_hidden_states: bool = False,
        padding_mask: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Return {"embedding": ...}. `mask` (b, t), or `padding_mask`, is True at real frames; noise levels default
        to 0.
        """
        mask = padding_mask if padding_mask is not None else mask
        level = None
        if self.noise_config is not None:
            levels = latents.new_zeros(len(latents)) if noise_levels is None else noise_levels
            features = self.noise_features(levels[:, None])
            level = self.to_noise_embed(features.to(self.to_noise_embed.weight))
        prepended = self.cls_embedding.expand(len(latents), -1, -1) if self.embed_type == "cls_prepend" else None
        result = self.transformer.run(
            latents.mT,
            prepend_embeds=prepended,
            global_cond=level,
            mask=mask,
            keep_hidden_states=return_hidden_states,
            **options,
        )
        if prepended is not None:
            embedding = result.output[:, 0]
        elif mask is None:
            embedding = result.output.mean(1)
        else:
            real = mask[..., None].to(result.output)
            embedding = (result.output * real).sum(1) / real.sum(1).clamp(min=1)
        out: dict[str, Any] = {"embedding": embedding}
        return {**out, "hidden_states": result.hidden_states} if return_hidden_states else out


@register("clap_audio", "transformer")
def build_audio_branch(
    embed_dim: Annotated[int, Field(ge=1, description="width of the transformer and of the vector")],
    depth: Annotated[int, Field(ge=1, description="layers")],
    dim_in: Annotated[int, Field(ge=1, description="channels of the latents")],
    embed_type: Annotated[Pooling, Field(description="a class token, or the mean of all frames")] = "cls_prepend",
    noise_config: Annotated[
        NoiseLevels | Mapping[str, Any] | None,
        Key(type=NoiseLevels | None),
        Field(description="also take noised latents with their noise level"),
    ] = None,
    dim_heads: Annotated[int, Field(ge=1, description="channels of an attention head")] = 64,
    num_memory_tokens: Annotated[int, Field(ge=0, description="learned tokens before the frames")] = 0,
    rotary_pos_emb: Annotated[bool, Field(description="rotary positions")] = True,
    sliding_window: Annotated[Sequence[int] | None, Field(description="frames that attention reaches")] = None,
    conformer: Annotated[bool, Field(description="a convolution module in each layer")] = False,
    norm_type: Annotated[NormType, Field(description="kind of layer norm")] = "layer_norm",
    attn_kwargs: Annotated[AttentionOptions | None, Field(description="of all attention layers")] = None,
    ff_kwargs: Annotated[FeedForwardOptions | None, Field(description="of all feed-forwards")] = None,
    norm_kwargs: Annotated[NormOptions | None, Field(description="of all layer norms")] = None,
    *,
    max_length: Runtime[int] = 1024,
) -> LatentTransformerCLAPAudioBranch:
    """A transformer over latents."""
    return LatentTransformerCLAPAudioBranch(
        embed_dim,
        embed_type,
        noise_config,
        max_length,
        depth=depth,
        dim_in=dim_in,
        dim_heads=dim_heads,
        num_memory_tokens=num_memory_tokens,
        rotary_pos_emb=rotary_pos_emb,
        sliding_window=sliding_window,
        conformer=conformer,
        norm_type=norm_type,
        attn_kwargs=attn_kwargs,
        ff_kwargs=ff_kwargs,
        norm_kwargs=norm_kwargs,
    )


@register("clap_text", "roberta")
class RobertaCLAPTextBranch(nn.Module):
    """Texts -> one vector each: the pooled output of a RoBERTa, by hub name or folder."""

    def __init__(
        self,
        name: Annotated[str, Field(min_length=1, description="hub name or folder of a RoBERTa or BERT")],
        max_length: Runtime[int] = 77,
    ) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.name, self.max_length = name, max_length
        self.embed_dim = int(read_pretrained_config(name, "text.model.config.name")["hidden_size"])
        if only_shapes_wanted():
            config = load_pretrained(AutoConfig, name, ("config.json",), "text.model.config.name")
            self.model: nn.Module = AutoModel.from_config(config)
        else:
            self.model = load_pretrained(AutoModel, name, WEIGHT_FILES, "text.model.config.name")
        self._tokenizer: Any = None

    def forward(self, text: Sequence[str]) -> dict[str, Tensor]:
        """Return {"embedding": (b, embed_dim)}."""
        return {"embedding": self._run(text)[0].pooler_output}

    def get_text_features(self, text: Sequence[str], layer_ix: int = -2) -> tuple[Tensor, Tensor]:
        """Return the states of a layer, (b, max_length, embed_dim), and the mask of real tokens."""
        output, mask = self._run(text, output_hidden_states=True)
        return output.hidden_states[layer_ix], mask

    def _run(self, text: Sequence[str], **options: Any) -> tuple[Any, Tensor]:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name, "text.model.config.name")
        tokens = self._tokenizer(
            list(text), return_tensors="pt", padding="max_length", max_length=self.max_length, truncation=True
        )
        device = next(self.model.parameters()).device
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        return self.model(input_ids=ids, attention_mask=mask, **options), mask


class CLAP(nn.Module):
    """Audio and text in one space of `joint_embed_dim` channels, as vectors of length one."""

    def __init__(
        self,
        joint_embed_dim: int,
        audio_branch: nn.Module,
        text_branch: nn.Module,
        pretransform: Pretransform | None = None,
        model_objective: Literal["clap", "slap"] = "clap",
    ) -> None:
        super().__init__()
        self.joint_embed_dim, self.model_objective = joint_embed_dim, model_objective
        self.audio_branch, self.text_branch, self.pretransform = audio_branch, text_branch, pretransform
        self.text_projection = _projection(int(text_branch.embed_dim), joint_embed_dim)  # type: ignore[arg-type]
        self.audio_projection = _projection(int(audio_branch.embed_dim), joint_embed_dim)  # type: ignore[arg-type]
        self.logit_scale_a = nn.Parameter(torch.tensor(math.log(1 / _TEMPERATURE)))

    def get_text_embedding(self, text: Sequence[str]) -> Tensor:
        """Return (b, joint_embed_dim)."""
        return F.normalize(self.text_projection(self.text_branch(text)["embedding"]), dim=-1)

    def get_audio_embedding(self, audio_features: Tensor, **options: Any) -> Tensor:
        """Return (b, joint_embed_dim) for latents (b, d, t); it takes the options of the audio half."""
        return F.normalize(self.audio_projection(self.audio_branch(audio_features, **options)["embedding"]), dim=-1)

    def get_audio_features(self, audio: Tensor) -> Tensor:
        """Return the latents of audio (b, c, n)."""
        if self.pretransform is None:
            raise ValueError("this CLAP has no pretransform: give it latents")
        return self.pretransform.encode(audio)


def _projection(width: int, joint: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, joint), nn.ReLU(), nn.Linear(joint, joint))


@dataclass(frozen=True)
class AudioHalf:
    """The `audio` section."""

    model: Annotated[Part, Kind("clap_audio")]
    context_length: Annotated[int, Field(ge=1, description="frames that the model is meant for")] = 1024


@dataclass(frozen=True)
class TextHalf:
    """The `text` section."""

    model: Annotated[Part, Kind("clap_text")]
    context_length: Annotated[int, Field(ge=1, description="tokens of a text")] = 77


def _facts(config: Any) -> JsonObject:
    pretransform = {} if config.pretransform is None else config.pretransform.facts
    ratio = pretransform.get("downsampling_ratio")
    return {"min_input_length": ratio} if ratio else {}


@register("model", "clap", facts=_facts)
def build_clap(
    joint_embed_dim: Annotated[int, Field(ge=1, description="channels of the joint space")],
    audio: Annotated[AudioHalf, Field(description="the half for latents")],
    text: Annotated[TextHalf, Field(description="the half for texts")],
    pretransform: Annotated[Part | None, Kind("pretransform"), Field(description="turns audio into latents")] = None,
    model_objective: Literal["clap", "slap"] = "clap",
    *,
    sample_rate: Runtime[int],
) -> CLAP:
    """Audio and text in one space."""
    return CLAP(
        joint_embed_dim,
        audio.model.build(max_length=audio.context_length),
        text.model.build(max_length=text.context_length),
        None if pretransform is None else pretransform.build(sample_rate=sample_rate),
        model_objective,
    )


def create_clap_from_config(model_config: Mapping[str, Any], pretransform: Pretransform | None = None) -> CLAP:
    """Build a CLAP from a model config; a given pretransform replaces the one in the config."""
    from stable_audio_tools.core.config import build

    body = dict(model_config["model"])
    if pretransform is not None:
        body.pop("pretransform", None)
    node = {"type": "clap", "config": body}
    model: CLAP = build("model", node, "model", sample_rate=model_config.get("sample_rate", 44100))
    if pretransform is not None:
        model.pretransform = pretransform
    return model
