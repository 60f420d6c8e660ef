"""Text through pretrained language models: the encoder of T5Gemma, or the last layer of a causal model such as Gemma.

A frozen model is not in the state dict. It is loaded on first use, once per process and device. Gemma's
activations exceed what float16 can hold, so on a GPU it runs in bfloat16.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.devices import indexed
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    OutputDim,
    PaddingMode,
    ProjectOut,
    Values,
    reads,
    require_texts,
)
from stable_audio_tools.models.conditioners.frozen import FrozenEncoder, RecentResults
from stable_audio_tools.models.conditioners.hub import (
    CONFIG_FILES,
    TOKENIZER_FILES,
    WEIGHT_FILES,
    in_dtype,
    load_pretrained,
    only_shapes_wanted,
    read_pretrained_config,
)

_MaxLength = Annotated[int, Field(ge=1, description="tokens of every condition: longer texts are cut, others padded")]
_Trained = Annotated[bool, Field(description="train the language model, and keep it in the state dict")]
_Folder = Annotated[str | None, Field(description="folder with the files of the model, before any name")]

_WIDTHS = {"google/t5gemma-b-b-ul2": 768, "google/gemma-2-2b": 2304}


class ScaledRMSNorm(nn.Module):
    """Root mean square of one over the last axis, times a gain that files call `scale`."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), x.shape[-1:], self.scale.float(), self.eps).to(x.dtype)


class LanguageModelConditioner(Conditioner):
    """Text as the hidden states of a pretrained model, which subclasses choose."""

    def __init__(
        self,
        source: str,
        subfolder: str | None,
        key: str,
        width: int,
        output_dim: int | None,
        max_length: int,
        enable_grad: bool,
        project_out: bool,
        padding_mode: PaddingMode,
        cond_dim: int | None,
    ) -> None:
        """`key` is the config key that named `source`."""
        super().__init__(width, output_dim, project_out, cond_dim, padding_mode)
        self.source, self.subfolder, self._key = source, subfolder, key
        self.max_length = max_length
        self.enable_grad = enable_grad
        self._frozen = FrozenEncoder()
        self._recent: RecentResults[Tensor] = RecentResults()
        if enable_grad:
            self.model = self._create(torch.float32, empty=only_shapes_wanted())

    def _create(self, dtype: torch.dtype, empty: bool = False) -> nn.Module:
        """Create the model in eval mode; `empty` reads no weights."""
        raise NotImplementedError

    def _hidden_states(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """(b, s) -> (b, s, width)"""
        raise NotImplementedError

    def _read(self, loader: Any, files: Sequence[str], **options: Any) -> Any:
        if self.subfolder:
            options["subfolder"] = self.subfolder
        return load_pretrained(loader, self.source, files, self._key, **options)

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer that the model was trained with."""
        from transformers import AutoTokenizer

        tokenizer = self._read(AutoTokenizer, TOKENIZER_FILES)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def language_model(self) -> nn.Module:
        """Return the model on `self.device`; load it on first use."""
        if self.enable_grad:
            return self.model
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        key = (type(self).__name__, self.source, self.subfolder or "")
        return self._frozen.on(key, self.device, dtype, partial(self._create, dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conditioner":
        super()._apply(fn, recurse)
        self._frozen.follow(fn)
        return self

    def tokenize(self, values: Values) -> tuple[Tensor, Tensor]:
        """Return token ids and mask (b, max_length) of texts, or of dicts {"input_ids": ..., "attention_mask": ...}."""
        if values and all(isinstance(value, Mapping) for value in values):
            ids, masks = ([torch.as_tensor(value[key]) for value in values] for key in ("input_ids", "attention_mask"))
            return torch.stack(ids).to(self.device), torch.stack(masks).to(self.device).bool()
        tokens = self.tokenizer(
            require_texts(values),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        return tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device).bool()

    def encode(self, values: Values) -> Condition:
        ids, mask = self.tokenize(values)
        if self.enable_grad:
            hidden = self._read_states(ids, mask)
        else:
            key = (indexed(self.device), *map(tuple, ids.tolist()))
            hidden = self._recent.get(key, partial(self._read_states, ids, mask))
        return Condition(self.fill_padding(self.project(self._prepare(hidden)), mask), mask)

    def _read_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        grad = torch.is_grad_enabled() and self.enable_grad
        with torch.set_grad_enabled(grad), torch.autocast(self.device.type, enabled=False):
            return self._hidden_states(self.language_model(), ids, mask)

    def _prepare(self, hidden: Tensor) -> Tensor:
        """Process hidden states before the projection."""
        return hidden


@register("conditioner", "t5gemma", facts=reads("text"))
class T5GemmaConditioner(LanguageModelConditioner):
    """Text through the encoder of a T5Gemma model."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        model_name: Annotated[str, Field(min_length=1, description="hub name of the model")] = "google/t5gemma-b-b-ul2",
        max_length: _MaxLength = 128,
        enable_grad: _Trained = False,
        project_out: ProjectOut = False,
        padding_mode: PaddingMode = "zero",
        model_path: _Folder = None,
        repo_id: Annotated[
            str | None, Field(description="repository on the hub that holds the model, before model_name")
        ] = None,
        subfolder: Annotated[str | None, Field(description="folder inside the repository or model_path")] = None,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        named = {"model_path": model_path, "repo_id": repo_id, "model_name": model_name}
        key, source = next((key, name) for key, name in named.items() if name)
        super().__init__(
            source,
            subfolder,
            key,
            _width_of(model_name, ("encoder", "hidden_size")),
            output_dim,
            max_length,
            enable_grad,
            project_out,
            padding_mode,
            cond_dim,
        )

    def _create(self, dtype: torch.dtype, empty: bool = False) -> nn.Module:
        from transformers import AutoConfig, T5GemmaEncoderModel

        config = self._read(AutoConfig, CONFIG_FILES)
        config.is_encoder_decoder = False
        if empty:
            model: nn.Module = T5GemmaEncoderModel(config)
        else:
            model = self._read(T5GemmaEncoderModel, WEIGHT_FILES, config=config, **in_dtype(dtype))
        return model.eval()

    def _hidden_states(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = model(input_ids=ids, attention_mask=mask)["last_hidden_state"]
        return states


@register("conditioner", "causal_lm", facts=reads("text"))
class CausalLMConditioner(LanguageModelConditioner):
    """Text through a causal language model: its last hidden states, normalised."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        model_name: Annotated[str, Field(min_length=1, description="hub name of the model")] = "google/gemma-2-2b",
        max_length: _MaxLength = 128,
        enable_grad: _Trained = False,
        project_out: ProjectOut = False,
        learned_scale: Annotated[bool, Field(description="a learned gain after the norm, 0.01 at first")] = True,
        padding_mode: PaddingMode = "zero",
        model_path: _Folder = None,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(
            model_path or model_name,
            None,
            "model_path" if model_path else "model_name",
            _width_of(model_name, ("hidden_size",)),
            output_dim,
            max_length,
            enable_grad,
            project_out,
            padding_mode,
            cond_dim,
        )
        self.norm = ScaledRMSNorm(self.dim)
        self.scale = nn.Parameter(torch.tensor(0.01)) if learned_scale else None

    def _create(self, dtype: torch.dtype, empty: bool = False) -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        if empty:
            model: nn.Module = AutoModelForCausalLM.from_config(self._read(AutoConfig, CONFIG_FILES))
        else:
            model = self._read(AutoModelForCausalLM, WEIGHT_FILES, **in_dtype(dtype))
        return model.eval()

    def _hidden_states(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states: Tensor = output["hidden_states"][-1]
        return states

    def _prepare(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden.to(self.norm.scale.dtype))
        return hidden if self.scale is None else hidden * self.scale


def _width_of(name: str, keys: Sequence[str]) -> int:
    """Return the width of the hidden states, from a table or from the model's config."""
    if name in _WIDTHS:
        return _WIDTHS[name]
    found: Any = read_pretrained_config(name, "model_name")
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, int):
        raise ValueError(f"model_name: the config of {name!r} has no {'.'.join(keys)}; it is a model of another family")
    return found
