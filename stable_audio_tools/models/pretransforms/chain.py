"""Pretransforms in sequence: each processes the output of the previous one."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Kind, Part, Runtime, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.pretransforms.base import Pretransform, facts


class ChainPretransform(Pretransform):
    """Stages that encode in order and decode in reverse; tokens are the tokens of the last one."""

    def __init__(self, stages: Sequence[Pretransform]) -> None:
        first, last = stages[0], stages[-1]
        super().__init__(enable_grad=False, io_channels=first.io_channels, is_discrete=last.is_discrete)
        self.stages = nn.ModuleList(stages)
        self.downsampling_ratio = prod(stage.downsampling_ratio for stage in stages)
        self.encoded_channels = last.encoded_channels
        self.num_quantizers = last.num_quantizers
        self.codebook_size = last.codebook_size

    @property
    def model(self) -> nn.Module:
        """The only autoencoder of the chain, whose weights can be loaded from a separate file."""
        models = [stage.model for stage in self.stages if hasattr(stage, "model")]
        if len(models) != 1:
            raise AttributeError(f"{len(models)} stages of this chain hold a model; name one by its place in `stages`")
        assert isinstance(models[0], nn.Module)
        return models[0]

    @property
    def flat(self) -> list[Pretransform]:
        """The stages, with nested chains expanded."""
        stages: list[Pretransform] = []
        for stage in self.stages:
            assert isinstance(stage, Pretransform)
            stages += stage.flat if isinstance(stage, ChainPretransform) else [stage]
        return stages

    @property
    def scale(self) -> float:
        """The scale of the last stage that has one, or 1."""
        return next((stage.scale for stage in reversed(self.flat) if stage.is_scaled), 1.0)

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:
        """Encode audio (b, c, n) to (b, d, t); keywords go to the last stage."""
        for stage in self._all_but_last:
            x = stage.encode(x)
        return self._last.encode(x, **kwargs)

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:
        """Decode (b, d, t) to audio (b, c, n); keywords go to the last stage."""
        return self._back(self._last.decode(z, **kwargs))

    def tokenize(self, x: Tensor, **kwargs: object) -> Tensor:
        for stage in self._all_but_last:
            x = stage.encode(x)
        return self._last.tokenize(x, **kwargs)

    def decode_tokens(self, tokens: Tensor, **kwargs: object) -> Tensor:
        return self._back(self._last.decode_tokens(tokens, **kwargs))

    def unlike(self, node: Mapping[str, object], sample_rate: int) -> str | None:
        stages = self.flat
        if node.get("type") == "autoencoder":
            return stages[-1].unlike(node, sample_rate)
        if len(stages) > 1 and node.get("type") != "chain":
            return f"they come from {node.get('type')!r} alone, which is one of {len(stages)} stages of this model"
        return stages[0].unlike(node, sample_rate)

    def _back(self, x: Tensor) -> Tensor:
        for stage in reversed(self._all_but_last):
            x = stage.decode(x)
        return x

    @property
    def _last(self) -> Pretransform:
        last = self.stages[-1]
        assert isinstance(last, Pretransform)
        return last

    @property
    def _all_but_last(self) -> list[Pretransform]:
        return [stage for stage in self.stages[:-1] if isinstance(stage, Pretransform)]


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    before: JsonObject = {}
    for index, stage in enumerate(config.stages):
        known = stage.facts
        if known.get("is_discrete") and index < len(config.stages) - 1:
            yield f"stages[{index}]", f"{stage.type!r} outputs tokens, which no other stage accepts; put it last"
        given, wanted = before.get("encoded_channels"), known.get("io_channels")
        if given is not None and wanted is not None and given != wanted:
            yield f"stages[{index}]", f"takes {wanted} channels, but stages[{index - 1}] delivers {given}: use {given}"
        before = known


def _facts(config: SimpleNamespace) -> JsonObject:
    known = [stage.facts for stage in config.stages]
    ratios = [stage.get("downsampling_ratio") for stage in known]
    return {
        **known[-1],
        **facts(
            io_channels=known[0]["io_channels"],
            encoded_channels=known[-1]["encoded_channels"],
            downsampling_ratio=None if None in ratios else prod(ratios),
        ),
        "is_discrete": known[-1]["is_discrete"],
    }


@register("pretransform", "chain", facts=_facts, check=_check)
def build_chain_pretransform(
    stages: Annotated[
        list[Annotated[Part, Kind("pretransform")]],
        Field(min_length=1, description="the pretransforms, in the order in which audio passes them"),
    ],
    *,
    sample_rate: Runtime[int],
) -> ChainPretransform:
    """Several pretransforms in a row, such as mel bands and an autoencoder of them."""
    return ChainPretransform([stage.build(sample_rate=sample_rate) for stage in stages])
