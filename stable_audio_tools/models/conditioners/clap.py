"""Text or audio through CLAP, one network for both, as one vector or (text) as the states of a layer."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.devices import indexed
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders.preprocessing import resample
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
from stable_audio_tools.models.conditioners.clap_towers import (
    LAION_WIDTHS,
    TEXT_LENGTH,
    AudioTower,
    TextTower,
    audio_tower_by_name,
    audio_tower_of_checkpoint,
    clap_widths,
    text_tower_by_name,
    text_tower_of_checkpoint,
)
from stable_audio_tools.models.conditioners.frozen import FrozenEncoder, RecentResults

_Checkpoint = Annotated[str | None, Field(description="a checkpoint of laion-clap (.pt)")]
_Name = Annotated[str | None, Field(description="a CLAP of transformers, by hub name or folder, instead")]
_AudioModel = Annotated[str, Field(description="accepted; the checkpoint itself says what it holds")]
_Fusion = Annotated[bool, Field(description="accepted; the checkpoint itself says what it holds")]
_Finetune = Annotated[bool, Field(description="train CLAP, and keep it in the state dict")]


def _check_source(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if (config.clap_ckpt_path is None) == (config.clap_model_name is None):
        yield (
            "clap_ckpt_path",
            "give one of clap_ckpt_path (of laion-clap) and clap_model_name (such as 'laion/clap-htsat-fused')",
        )


class _CLAPConditioner(Conditioner):
    """Loads its half of CLAP when it trains, or when first used; frozen weights are not in the state dict."""

    side: str

    def __init__(
        self,
        dim: int,
        output_dim: int | None,
        project_out: bool,
        cond_dim: int | None,
        source: tuple[str | None, str | None],
        finetune: bool,
    ) -> None:
        super().__init__(dim, output_dim, project_out, cond_dim)
        self.clap_ckpt_path, self.clap_model_name = source
        self.finetune = finetune
        self._frozen = FrozenEncoder()
        if finetune:
            # laion-clap's own object stands between: its names begin with `model.model`.
            self.model = nn.ModuleDict({"model": self._load().requires_grad_(True)})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conditioner":
        super()._apply(fn, recurse)
        self._frozen.follow(fn)
        return self

    def _load(self) -> nn.Module:
        raise NotImplementedError

    def tower(self) -> nn.Module:
        """Return this half of CLAP on `self.device`, in float32 and eval mode; load it on first use."""
        if self.finetune:
            return self.model["model"].eval()
        name = ("clap", self.side, str(self.clap_ckpt_path or self.clap_model_name))
        return self._frozen.on(name, self.device, torch.float32, self._load)

    def in_float32(self) -> torch.autocast:
        """Return a context that turns autocast off for CLAP."""
        return torch.autocast(self.device.type, enabled=False)


def _source(checkpoint: str | None, name: str | None) -> tuple[str | None, str | None]:
    if (checkpoint is None) == (name is None):
        raise ConfigError("give one of clap_ckpt_path and clap_model_name")
    return checkpoint, name


@register("conditioner", "clap_text", facts=reads("text"), check=_check_source)
class CLAPTextConditioner(_CLAPConditioner):
    """Text through CLAP: one vector, or with `use_text_features` the states of a layer, 77 tokens."""

    side = "text"

    def __init__(
        self,
        output_dim: OutputDim = None,
        clap_ckpt_path: _Checkpoint = None,
        use_text_features: Annotated[bool, Field(description="condition on tokens instead of one vector")] = False,
        feature_layer_ix: Annotated[int, Field(description="which layer's states, counted as in a list")] = -1,
        audio_model_type: _AudioModel = "HTSAT-base",
        enable_fusion: _Fusion = True,
        project_out: ProjectOut = False,
        finetune: _Finetune = False,
        *,
        clap_model_name: _Name = None,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        source = _source(clap_ckpt_path, clap_model_name)
        widths = LAION_WIDTHS if clap_model_name is None else clap_widths(clap_model_name, "clap_model_name")
        super().__init__(widths[0 if use_text_features else 1], output_dim, project_out, cond_dim, source, finetune)
        self.use_text_features = use_text_features
        self.feature_layer_ix = feature_layer_ix
        self._recent: RecentResults[tuple[Tensor, Tensor]] = RecentResults()

    def _load(self) -> nn.Module:
        if self.clap_ckpt_path is not None:
            return text_tower_of_checkpoint(self.clap_ckpt_path)
        assert self.clap_model_name is not None
        return text_tower_by_name(self.clap_model_name, "clap_model_name")

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer that CLAP was trained with (RoBERTa's)."""
        from stable_audio_tools.models.conditioners.text import load_tokenizer

        return load_tokenizer(self.clap_model_name or "roberta-base", "the tokenizer of clap_text")

    def encode(self, values: Values) -> Condition:
        texts = require_texts(values)
        distinct = list(dict.fromkeys(texts))
        if self.finetune:
            found, mask = self._features(distinct)
        else:
            found, mask = self._recent.get((indexed(self.device), *distinct), partial(self._features, distinct))
        rows = torch.tensor([distinct.index(text) for text in texts], device=self.device)
        if self.use_text_features:
            return Condition(self.project(found)[rows], mask.bool()[rows])
        return as_token(self.project(found)[rows])

    def _features(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the states of the layer or one vector per text, and the mask of the tokens."""
        tower = self.tower()
        assert isinstance(tower, TextTower)
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.finetune), self.in_float32():
            found = tower.states(ids, mask, self.feature_layer_ix) if self.use_text_features else tower(ids, mask)
        return found, mask


@register("conditioner", "clap_audio", facts=reads("audio"), check=_check_source)
class CLAPAudioConditioner(_CLAPConditioner):
    """Audio (c, n), all items of the same length, through CLAP as one vector."""

    side = "audio"

    def __init__(
        self,
        output_dim: OutputDim = None,
        clap_ckpt_path: _Checkpoint = None,
        audio_model_type: _AudioModel = "HTSAT-base",
        enable_fusion: _Fusion = True,
        project_out: ProjectOut = False,
        finetune: _Finetune = False,
        *,
        clap_model_name: _Name = None,
        cond_dim: Runtime[int | None] = None,
        sample_rate: Runtime[int] = 48000,
    ) -> None:
        source = _source(clap_ckpt_path, clap_model_name)
        width = LAION_WIDTHS[1] if clap_model_name is None else clap_widths(clap_model_name, "clap_model_name")[1]
        super().__init__(width, output_dim, project_out, cond_dim, source, finetune)
        self.sample_rate = sample_rate

    def _load(self) -> nn.Module:
        if self.clap_ckpt_path is not None:
            return audio_tower_of_checkpoint(self.clap_ckpt_path)
        assert self.clap_model_name is not None
        return audio_tower_by_name(self.clap_model_name, "clap_model_name")

    def encode(self, values: Sequence[Tensor] | Tensor) -> Condition:
        tower = self.tower()
        assert isinstance(tower, AudioTower)
        clips = [clip[0] if clip.ndim == 3 else clip for clip in values]
        mono = torch.stack([clip.to(self.device).float().mean(dim=0) for clip in clips])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.finetune), self.in_float32():
            embedding = tower(resample(mono, self.sample_rate, tower.sample_rate))
        return as_token(self.project(embedding))
