"""Audio as a condition: encoded by a pretransform, alone or mixed from named sources."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Kind, Part, Runtime, register
from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.models.autoencoders.preprocessing import match_channels
from stable_audio_tools.models.checkpoints import load_into
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, OutputDim, reads
from stable_audio_tools.models.pretransforms.base import Pretransform

_SampleRate = Annotated[int, Field(ge=1, description="sample rate of the pretransform")]
_UseOwn = Annotated[bool, Field(description="encode with the model's own pretransform")]
_Pretransform = Annotated[
    Part | None, Kind("pretransform"), Field(description="another pretransform than the model's own")
]
_Weights = Annotated[str | None, Field(description="weights of the pretransform")]
_Save = Annotated[bool, Field(description="keep the pretransform's weights in the state dict of the model")]


class _PretransformBased(Conditioner):
    """A conditioner that encodes audio with a pretransform; the pretransform is a submodule only if it is saved."""

    pretransform: Pretransform

    def __init__(self, pretransform: Pretransform, output_dim: int, save_pretransform: bool) -> None:
        super().__init__(pretransform.encoded_channels, output_dim)
        if save_pretransform:
            self.pretransform = pretransform
        else:
            object.__setattr__(self, "pretransform", pretransform)  # not registered, so not in the state dict

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conditioner":
        super()._apply(fn, recurse)
        if "pretransform" not in self._modules:
            self.pretransform._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Load the weights of a pretransform outside the state dict, if a file holds them."""
        start = f"{prefix}pretransform."
        if "pretransform" not in self._modules:
            names = [name for name in state_dict if name.startswith(start)]
            if names:
                self._load_pretransform({name.removeprefix(start): state_dict.pop(name) for name in names}, start)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _load_pretransform(self, weights: dict[str, Tensor], prefix: str) -> None:
        module: nn.Module = self.pretransform
        answer = nn.Module.load_state_dict(module, weights, strict=False)
        problems = [*answer.missing_keys, *answer.unexpected_keys]
        if problems:
            raise CheckpointError(
                f"{prefix}*: {len(problems)} weights do not fit this pretransform, for example {problems[0]!r}"
            )

    def encode_audio(self, audio: Tensor) -> Tensor:
        """(b, c, n) of any channel count to latents (b, d, t)."""
        pretransform = self.pretransform.to(self.device)
        audio = match_channels(audio.to(self.device), pretransform.io_channels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and pretransform.enable_grad):
            return pretransform.encode(audio)


class PretransformConditioner(_PretransformBased):
    """Audio (c, n), all items of the same length, as latents (b, output_dim, t)."""

    def __init__(self, pretransform: Pretransform, output_dim: int, save_pretransform: bool = False) -> None:
        super().__init__(pretransform, output_dim, save_pretransform)

    def encode(self, values: Sequence[Tensor] | Tensor) -> Condition:
        if not isinstance(values, Tensor):
            shapes = sorted({tuple(clip.shape) for clip in values})
            if len(shapes) > 1:
                listed = ", ".join(map(str, shapes))
                raise ValueError(f"the audio conditions of one batch must have one shape, got {listed}")
            values = torch.stack(list(values))
        audio = values
        latents = self.encode_audio(audio[None] if audio.ndim == 2 else audio)
        latents = self.project(latents.transpose(1, 2)).transpose(1, 2)
        return _all_valid(latents)


class SourceMixConditioner(_PretransformBased):
    """The sources of a piece, each encoded and projected by its own layer, summed to (b, output_dim, t).

    Each item of the batch is a dict from source names to audio (c, n), or to latents (d, t) if `pre_encoded`. The state
    dict holds a projection `proj_out` that nothing uses, as published checkpoints do where the widths differ.
    """

    def __init__(
        self,
        pretransform: Pretransform,
        output_dim: int,
        save_pretransform: bool = False,
        source_keys: Sequence[str] = (),
        *,
        pre_encoded: bool = False,
        source_length: int | None = None,  # frames of latents
        allow_null_source: bool = False,
    ) -> None:
        super().__init__(pretransform, output_dim, save_pretransform)
        self.proj_out.requires_grad_(False)  # distributed training wants a gradient for whatever trains
        self.source_keys = list(source_keys)
        self.source_heads = nn.ModuleList(nn.Conv1d(self.dim, output_dim, kernel_size=1) for _ in self.source_keys)
        self.pre_encoded = pre_encoded
        self.allow_null_source = allow_null_source
        self.source_length = source_length
        if allow_null_source:
            if source_length is None:
                raise ConfigError("source_length: needed with allow_null_source, in frames of latents")
            self.null_source = nn.Parameter(torch.randn(output_dim, 1))

    def encode(self, values: Sequence[Mapping[str, Tensor]]) -> Condition:
        mixes = [self._mix(sources) for sources in values]
        lengths = sorted({mix.shape[-1] for mix in mixes})
        if len(lengths) > 1:
            raise ValueError(f"the sources of one batch must be equally long; their latents have {lengths} frames")
        return _all_valid(torch.stack(mixes))

    def _mix(self, sources: Mapping[str, Tensor]) -> Tensor:
        """-> (output_dim, t)"""
        heads = [(key, head) for key, head in zip(self.source_keys, self.source_heads) if key in sources]
        if heads:
            return torch.stack([head(self._latents(sources[key], key).to(_weight(head))) for key, head in heads]).sum(0)
        if not self.allow_null_source or self.source_length is None:
            raise ValueError(
                f"none of the sources {', '.join(self.source_keys)} is given (given: {', '.join(sources) or 'none'}); "
                "add one, or train with allow_null_source"
            )
        return self.null_source.expand(-1, self.source_length)

    def _latents(self, source: Tensor, key: str) -> Tensor:
        if self.pre_encoded:
            return source
        if source.ndim != 2:
            raise ValueError(f"source {key!r} must be shaped (channels, samples), got {tuple(source.shape)}")
        return self.encode_audio(source[None])[0]


def _weight(head: nn.Module) -> Tensor:
    assert isinstance(head, nn.Conv1d)
    return head.weight


def _all_valid(latents: Tensor) -> Condition:
    batch, _, frames = latents.shape
    return Condition(latents, torch.ones(batch, frames, dtype=torch.bool, device=latents.device))


def _check_source(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if not config.use_model_pretransform and config.pretransform_config is None:
        yield "pretransform_config", "missing; give one, or set use_model_pretransform to encode with the model's own"


def _check_mix(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    yield from _check_source(config)
    if config.allow_null_source and config.source_length is None:
        yield "source_length", "missing; allow_null_source needs it, in frames of latents"


def _choose_pretransform(
    own: Pretransform | None, use_own: bool, node: Part | None, sample_rate: int, weights: str | None
) -> Pretransform:
    if use_own and own is None:
        raise ConfigError("use_model_pretransform: the model has no pretransform; give pretransform_config instead")
    if use_own or node is None:
        assert own is not None
        chosen = own
    else:
        chosen = node.build(sample_rate=sample_rate)
    if weights is not None:
        load_into(getattr(chosen, "model", chosen), weights)
    return chosen


@register("conditioner", "pretransform", facts=reads("audio"), check=_check_source)
def build_pretransform_conditioner(
    sample_rate: _SampleRate,
    output_dim: OutputDim = None,
    use_model_pretransform: _UseOwn = False,
    pretransform_config: _Pretransform = None,
    pretransform_ckpt_path: _Weights = None,
    save_pretransform: _Save = False,
    *,
    cond_dim: Runtime[int | None] = None,
    pretransform: Runtime[Pretransform | None] = None,
) -> PretransformConditioner:
    """Audio, encoded by a pretransform."""
    chosen = _choose_pretransform(
        pretransform, use_model_pretransform, pretransform_config, sample_rate, pretransform_ckpt_path
    )
    width = output_dim or cond_dim
    assert width is not None
    return PretransformConditioner(chosen, width, save_pretransform)


@register("conditioner", "source_mix", check=_check_mix)
def build_source_mix_conditioner(
    sample_rate: _SampleRate,
    source_keys: Annotated[list[str], Field(min_length=1, description="names of the sources")],
    output_dim: OutputDim = None,
    use_model_pretransform: _UseOwn = False,
    pretransform_config: _Pretransform = None,
    pretransform_ckpt_path: _Weights = None,
    save_pretransform: _Save = False,
    pre_encoded: Annotated[bool, Field(description="the sources are latents already")] = False,
    allow_null_source: Annotated[bool, Field(description="learn a vector for items without any source")] = False,
    source_length: Annotated[int | None, Field(ge=1, description="frames of latents where no source is given")] = None,
    *,
    cond_dim: Runtime[int | None] = None,
    pretransform: Runtime[Pretransform | None] = None,
) -> SourceMixConditioner:
    """Several named sources, encoded by a pretransform, projected and summed."""
    chosen = _choose_pretransform(
        pretransform, use_model_pretransform, pretransform_config, sample_rate, pretransform_ckpt_path
    )
    width = output_dim or cond_dim
    assert width is not None
    return SourceMixConditioner(
        chosen,
        width,
        save_pretransform,
        source_keys,
        pre_encoded=pre_encoded,
        allow_null_source=allow_null_source,
        source_length=source_length,
    )
