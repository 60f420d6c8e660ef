"""From config nodes to a language model, and the checks that only several of their keys together allow."""

import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

from torch import nn

from stable_audio_tools.core.config import Kind, Part, Runtime, register
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.conditioners import Conditioning, check_conditioning, check_ids
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lm.language_model import AudioLanguageModel, AudioLanguageModelWrapper
from stable_audio_tools.models.lm.patterns import pattern_by_name

logger = logging.getLogger(__name__)

_WIDTH_KEYS = {  # the backbone's key for the width of each list of conditions
    "cross_attention_cond_ids": "cross_attn_cond_dim",
    "prepend_cond_ids": "prepend_cond_dim",
    "global_cond_ids": "global_cond_dim",
}


def _facts(config: SimpleNamespace) -> dict[str, Any]:
    return {"use": "language model", "min_input_length": config.pretransform.facts.get("downsampling_ratio")}


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    yield from check_conditioning(config.conditioning)
    if not config.pretransform.facts.get("is_discrete", True):
        yield "pretransform", "has no tokens; a language model needs a discrete bottleneck in it, such as dac_rvq"
    for ids_key in _WIDTH_KEYS:
        yield from _check_route(config, ids_key)


def _check_route(config: SimpleNamespace, ids_key: str) -> Iterator[tuple[str, str]]:
    """The ids of a list exist, and their widths make the backbone's."""
    ids = getattr(config.lm.siblings, ids_key)
    unknown = list(check_ids(config.conditioning, ids, f"lm.{ids_key}"))
    yield from unknown
    wanted = config.lm.facts.get(ids_key)
    if unknown or not ids or not wanted:
        return
    widths = {id: config.conditioning.width(id) for id in ids}
    key, told = f"lm.config.{_WIDTH_KEYS[ids_key]}", ", ".join(f"{id} {width or '?'}" for id, width in widths.items())
    if ids_key == "global_cond_ids":
        total = sum(width or 0 for width in widths.values())
        if None not in widths.values() and total != wanted:
            yield key, f"is {wanted}, but those of lm.{ids_key} add up to {total} ({told}): use {total}"
    elif any(width not in (None, wanted) for width in widths.values()):
        yield key, f"is {wanted}, but the conditions of lm.{ids_key} have other widths: {told}"


def _warn_of_unused(lm: Part) -> None:
    for ids_key, width_key in _WIDTH_KEYS.items():
        if getattr(lm.siblings, ids_key) and not lm.facts.get(ids_key):
            logger.warning("%s.%s: config.%s is not set; these conditions have no effect", lm.path, ids_key, width_key)


@register("model", "lm", facts=_facts, check=_check)
def build_language_model(
    pretransform: Annotated[Part, Kind("pretransform")],
    lm: Annotated[Part, Kind("lm")],
    conditioning: Conditioning | None = None,
    *,
    sample_rate: Runtime[int],
) -> AudioLanguageModelWrapper:
    """A language model over the tokens of a codec."""
    _warn_of_unused(lm)
    codec = pretransform.build(sample_rate=sample_rate)
    if not codec.is_discrete or codec.num_quantizers is None or codec.codebook_size is None:
        raise ConfigError(f"{pretransform.path}: has no tokens; a language model needs a discrete bottleneck in it")
    routing = lm.siblings
    pattern = pattern_by_name(routing.codebook_pattern, codec.num_quantizers)
    return AudioLanguageModelWrapper(
        codec,
        AudioLanguageModel(pattern, lm.build(), codec.num_quantizers, codec.codebook_size),
        sample_rate=sample_rate,
        min_input_length=codec.downsampling_ratio,
        conditioner=None if conditioning is None else conditioning.build(codec, sample_rate),
        cross_attn_cond_ids=routing.cross_attention_cond_ids,
        prepend_cond_ids=routing.prepend_cond_ids,
        global_cond_ids=routing.global_cond_ids,
    )


def create_audio_lm_from_config(config: Mapping[str, Any]) -> AudioLanguageModelWrapper:
    """Build the language model of a whole model config."""
    model: nn.Module = create_model_from_config(config)
    if not isinstance(model, AudioLanguageModelWrapper):
        raise ConfigError(f"model_type: {config['model_type']!r} is no language model")
    return model
