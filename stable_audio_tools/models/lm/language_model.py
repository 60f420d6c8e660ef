"""A language model over the codes of several codebooks, and the wrapper that joins it with conditioners and a codec."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import Kind, Part, Runtime, register
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.conditioners import (
    Conditioning,
    MultiConditioner,
    check_conditioning,
    check_ids,
    join_tokens,
    join_vectors,
)
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lm.backbone import AudioLMBackbone
from stable_audio_tools.models.lm.generation import Generators, LogitGuidance, check_sampling, generate_codes
from stable_audio_tools.models.lm.patterns import PatternProvider, pattern_by_name
from stable_audio_tools.models.pretransforms import Pretransform

logger = logging.getLogger(__name__)


class LMOutput(NamedTuple):
    """Logits (b, q, t, card) aligned with the codes that they predict; NaN where the mask (b, q, t) is False."""

    logits: Tensor
    mask: Tensor


class AudioLanguageModel(nn.Module):
    """Embeddings and heads for each codebook, around a backbone, in the order of a pattern."""

    def __init__(
        self, pattern_provider: PatternProvider, backbone: AudioLMBackbone, num_quantizers: int, codebook_size: int
    ) -> None:
        super().__init__()
        self.num_quantizers, self.codebook_size = num_quantizers, codebook_size
        self.masked_token_id = codebook_size  # the row after the codes
        self.pattern_provider = pattern_provider
        self.backbone = backbone
        width = backbone.embed_dim
        self.embeds = nn.ModuleList(nn.Embedding(codebook_size + 1, width) for _ in range(num_quantizers))
        self.quantizer_heads = nn.ModuleList(nn.Linear(width, codebook_size) for _ in range(num_quantizers))

    def forward(self, sequence: Tensor, *, last_only: bool = False, **inputs: Any) -> Tensor:
        """Predict logits (b, q, s, card) of the next steps from a sequence (b, q, s) in the pattern's order.

        `last_only` keeps the last step, (b, q, 1, card). Other keywords go to the backbone.
        """
        if sequence.shape[1] != self.num_quantizers:
            raise ValueError(f"the model has {self.num_quantizers} codebooks, the sequence has {sequence.shape[1]}")
        embedded = torch.stack([embed(codes) for embed, codes in zip(self.embeds, sequence.unbind(1))]).sum(0)
        hidden = self.backbone(embedded, **inputs)
        if last_only:
            hidden = hidden[:, -1:]
        return torch.stack([head(hidden) for head in self.quantizer_heads], dim=1)

    def compute_logits(self, codes: Tensor, **inputs: Any) -> LMOutput:
        """Return the logits of codes (b, q, t), each predicted from its predecessors in the pattern's order."""
        pattern = self.pattern_provider.get_pattern(codes.shape[-1])
        sequence = pattern.build_sequence(codes, self.masked_token_id)[..., : pattern.num_training_steps]
        logits, mask = pattern.revert_logits(self(sequence, **inputs))
        return LMOutput(logits, mask.expand(len(codes), -1, -1))


class AudioLanguageModelWrapper(nn.Module):
    """A language model with its conditioners and the discrete pretransform whose codes it writes."""

    num_quantizers: int
    codebook_size: int

    def __init__(
        self,
        pretransform: Pretransform,
        lm: AudioLanguageModel,
        sample_rate: int,  # Hz
        min_input_length: int,  # samples of audio per frame of codes
        conditioner: MultiConditioner | None = None,
        *,
        prepend_cond_ids: Sequence[str] = (),
        global_cond_ids: Sequence[str] = (),
        cross_attn_cond_ids: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not pretransform.is_discrete or pretransform.num_quantizers is None or pretransform.codebook_size is None:
            raise ConfigError("pretransform: a language model needs one with a discrete bottleneck, such as dac_rvq")
        self.pretransform = pretransform
        self.pretransform.requires_grad_(False).eval()
        self.num_quantizers = pretransform.num_quantizers
        self.codebook_size = pretransform.codebook_size
        self.lm = lm
        self.conditioner = conditioner
        self.sample_rate = sample_rate
        self.min_input_length = min_input_length
        self.cross_attn_cond_ids = list(cross_attn_cond_ids)
        self.prepend_cond_ids = list(prepend_cond_ids)
        self.global_cond_ids = list(global_cond_ids)

    def get_conditioning_inputs(self, cond: Mapping[str, Any], negative: bool = False) -> dict[str, Tensor | None]:
        """Convert conditions by id to inputs of the backbone, by keyword."""
        cross_attn = join_tokens(cond, self.cross_attn_cond_ids)
        prepend = join_tokens(cond, self.prepend_cond_ids)
        inputs = {
            "cross_attn_cond": cross_attn.tokens if cross_attn else None,
            "cross_attn_mask": cross_attn.mask if cross_attn else None,
            "prepend_cond": prepend.tokens if prepend else None,
            "prepend_cond_mask": prepend.mask if prepend else None,
            "global_cond": join_vectors(cond, self.global_cond_ids),
        }
        return {f"negative_{name}": value for name, value in inputs.items()} if negative else inputs

    def compute_logits(
        self,
        codes: Tensor,
        condition_tensors: Mapping[str, Any] | None = None,
        cfg_dropout_prob: float = 0.0,
        **options: Any,
    ) -> LMOutput:
        """Return the logits of codes (b, q, t) under conditions by id.

        `cfg_dropout_prob` is the probability that a condition of an item is replaced by zeros, the negative side of
        guidance.
        """
        inputs = self.get_conditioning_inputs(condition_tensors or {})
        if cfg_dropout_prob > 0:
            for name in ("cross_attn_cond", "prepend_cond", "global_cond"):
                inputs[name] = _dropped(inputs[name], cfg_dropout_prob)
        return self.lm.compute_logits(codes, **inputs, **options)

    @torch.no_grad()
    def generate(
        self,
        max_gen_len: int = 256,
        batch_size: int | None = None,
        init_data: Tensor | None = None,
        conditioning: Sequence[Mapping[str, object]] | None = None,
        conditioning_tensors: Mapping[str, Any] | None = None,
        callback: Callable[[int, int], None] | None = None,
        use_cache: bool = True,
        cfg_scale: float = 1.0,
        *,
        negative_conditioning: Sequence[Mapping[str, object]] | None = None,
        negative_conditioning_tensors: Mapping[str, Any] | None = None,
        cross_attn_use_cfg: bool = True,
        prepend_use_cfg: bool = True,
        global_use_cfg: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temp: float = 1.0,
        generator: Generators = None,
    ) -> Tensor:
        """Generate codes (b, q, max_gen_len) from metadata (`conditioning`) or tensors by id (`conditioning_tensors`).

        `init_data` (b, q, t) are the first codes, to be continued. With `cfg_scale` other than 1, logits are guided
        away from the negative conditions, or from zeros; `*_use_cfg=False` keeps that condition on both sides.
        `callback(step, steps)` receives the progress. With a list of generators, one per item, an item does not depend
        on the rest of the batch.
        """
        check_sampling(temp, top_k, top_p)
        inputs = self._inputs(conditioning, conditioning_tensors)
        negative = self._inputs(negative_conditioning, negative_conditioning_tensors)
        init_data = self._first_codes(init_data, batch_size, inputs)
        kept = {"cross_attn": not cross_attn_use_cfg, "prepend": not prepend_use_cfg, "global": not global_use_cfg}
        guidance = None
        if cfg_scale != 1.0:
            guidance = LogitGuidance(cfg_scale, negative, tuple(name for name, keeps in kept.items() if keeps))
        return generate_codes(
            self.lm,
            init_data,
            max_gen_len,
            inputs,
            guidance,
            use_cache=use_cache,
            callback=callback,
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        )

    @torch.no_grad()
    def generate_audio(self, **options: Any) -> Tensor:
        """Generate audio (b, c, n); keywords go to `generate`."""
        return self.pretransform.decode_tokens(self.generate(**options))

    def _inputs(
        self, metadata: Sequence[Mapping[str, object]] | None, conditions: Mapping[str, Any] | None
    ) -> dict[str, Tensor | None]:
        if conditions is None and metadata is not None:
            if self.conditioner is None:
                raise ValueError("conditioning: this model has no conditioners; leave it out")
            conditions = self.conditioner(metadata, self._device())
        return {} if conditions is None else self.get_conditioning_inputs(conditions)

    def _first_codes(
        self, init_data: Tensor | None, batch_size: int | None, inputs: Mapping[str, Tensor | None]
    ) -> Tensor:
        """Return the codes to continue, none by default, after checking that all arguments have one batch size."""
        sizes = {name: len(value) for name, value in inputs.items() if value is not None}
        if init_data is not None:
            sizes["init_data"] = len(init_data)
        if batch_size is not None:
            sizes["batch_size"] = batch_size
        if len(set(sizes.values())) > 1:
            given = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"the arguments have different batch sizes: {given}")
        if init_data is not None:
            return init_data.to(self._device())
        size = next(iter(sizes.values()), 1)
        return torch.empty(size, self.num_quantizers, 0, dtype=torch.long, device=self._device())

    def _device(self) -> torch.device:
        return next(self.lm.parameters()).device


def _dropped(condition: Tensor | None, probability: float) -> Tensor | None:
    """Replace random items by zeros."""
    if condition is None:
        return None
    shape = (len(condition),) + (1,) * (condition.ndim - 1)
    drop = torch.bernoulli(torch.full(shape, probability, device=condition.device)).bool()
    return condition.masked_fill(drop, 0.0)


_WIDTH_KEYS = {  # the backbone's key for the width of each list of conditions
    "cross_attention_cond_ids": "cross_attn_cond_dim",
    "prepend_cond_ids": "prepend_cond_dim",
    "global_cond_ids": "global_cond_dim",
}


def _check_model(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    yield from check_conditioning(config.conditioning)
    if not config.pretransform.facts.get("is_discrete", True):
        yield "pretransform", "has no tokens; a language model needs a discrete bottleneck in it, such as dac_rvq"
    for ids_key in _WIDTH_KEYS:
        yield from _check_route(config, ids_key)


def _check_route(config: SimpleNamespace, ids_key: str) -> Iterator[tuple[str, str]]:
    """Check that the ids of a list exist, and that their widths match the backbone."""
    ids = getattr(config.lm.siblings, ids_key)
    unknown = list(check_ids(config.conditioning, ids, f"lm.{ids_key}"))
    yield from unknown
    width = config.lm.facts.get(ids_key)
    if unknown or not ids or not width:
        return
    widths = {id: config.conditioning.width(id) for id in ids}
    key, listed = f"lm.config.{_WIDTH_KEYS[ids_key]}", ", ".join(f"{id} {each or '?'}" for id, each in widths.items())
    if ids_key == "global_cond_ids":
        total = sum(each or 0 for each in widths.values())
        if None not in widths.values() and total != width:
            yield key, f"is {width}, but the widths of lm.{ids_key} add up to {total} ({listed}): use {total}"
    elif any(each not in (None, width) for each in widths.values()):
        yield key, f"is {width}, but the conditions of lm.{ids_key} have other widths: {listed}"


@register(
    "model",
    "lm",
    facts=lambda config: {
        "use": "language model",
        "min_input_length": config.pretransform.facts.get("downsampling_ratio"),
    },
    check=_check_model,
)
def build_language_model(
    pretransform: Annotated[Part, Kind("pretransform")],
    lm: Annotated[Part, Kind("lm")],
    conditioning: Conditioning | None = None,
    *,
    sample_rate: Runtime[int],
) -> AudioLanguageModelWrapper:
    """A language model over the tokens of a codec."""
    for ids_key, width_key in _WIDTH_KEYS.items():
        if getattr(lm.siblings, ids_key) and not lm.facts.get(ids_key):
            logger.warning("%s.%s: config.%s is not set; these conditions have no effect", lm.path, ids_key, width_key)
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
        raise ConfigError(f"model_type: {config['model_type']!r} is not a language model")
    return model
