"""Autoregressive generation of codes, one step of the pattern at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from stable_audio_tools.models.lm.patterns import PatternProvider
from stable_audio_tools.models.transformer import KeyValueCache

Generators = torch.Generator | Sequence[torch.Generator] | None  # of the batch, or one per item


def sample_tokens(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    generator: Generators = None,
) -> Tensor:
    """Draw tokens (b, ...) from logits (b, ..., card).

    Temperature 0 takes the likeliest token. `top_p` (0: off) draws from the likeliest tokens whose probabilities add up
    to it; otherwise `top_k` (0: off) draws from the `top_k` likeliest.
    """
    if temperature <= 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p > 0:
        ordered, tokens = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        drawn = _draw(ordered.masked_fill(before > top_p, 0.0), generator)
        return tokens.gather(-1, drawn[..., None])[..., 0]
    if top_k > 0:
        least = probabilities.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return _draw(probabilities, generator)


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raise ValueError for options outside the range of `sample_tokens`."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temp: expected 0 (the likeliest token) or more, got {temperature:g}")
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (off) or more, got {top_k}")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p: expected 0 (off) to 1, got {top_p:g}")


def _draw(weights: Tensor, generator: Generators) -> Tensor:
    """Draw an index by weights that need not sum to 1: the first arrival among exponential clocks of these rates."""
    arrivals = torch.empty_like(weights)
    if isinstance(generator, Sequence):
        if len(generator) != len(weights):
            raise ValueError(f"{len(generator)} generators for {len(weights)} items; give one, or one per item")
        for item, own in zip(arrivals, generator):
            item.exponential_(1, generator=own)
    else:
        arrivals.exponential_(1, generator=generator)
    return (weights / arrivals).argmax(dim=-1)


Inputs = Mapping[str, Tensor | None]  # of the backbone, by keyword

_UNKNOWN = -1


@dataclass(frozen=True)
class LogitGuidance:
    """Classifier-free guidance: extrapolation by `scale` from logits without conditions, or with negative ones.

    `kept` names the conditions that both sides have: "cross_attn", "prepend", "global".
    """

    scale: float
    negative: Inputs = field(default_factory=dict)
    kept: tuple[str, ...] = ()

    def double(self, inputs: Inputs) -> dict[str, Tensor | None]:
        """Return the inputs of a batch of twice the size: first with conditions, then without."""
        return {name: None if value is None else self._pair(name, value) for name, value in inputs.items()}

    def _pair(self, name: str, value: Tensor) -> Tensor:
        negative = self.negative.get(name)
        if name.startswith(self.kept) or (negative is None and name.endswith("_mask")):
            return torch.cat([value, value])
        if negative is None:
            return torch.cat([value, torch.zeros_like(value)])
        if negative.shape != value.shape:
            raise ValueError(
                f"the negative conditioning has the shape {tuple(negative.shape)}, the conditioning "
                f"{tuple(value.shape)} ({name})"
            )
        return torch.cat([value, negative])

    def lead(self, logits: Tensor) -> Tensor:
        """Combine the logits of both sides, (2b, ...) -> (b, ...)."""
        with_conditions, without = logits.chunk(2)
        return without + (with_conditions - without) * self.scale


class CodeModel(Protocol):
    """Logits of the next step of a sequence of codes in the order of a pattern."""

    pattern_provider: PatternProvider
    masked_token_id: int

    def __call__(self, sequence: Tensor, *, last_only: bool = False, **inputs: Any) -> Tensor: ...


def generate_codes(
    lm: CodeModel,
    init_codes: Tensor,
    timesteps: int,
    inputs: Inputs,
    guidance: LogitGuidance | None = None,
    use_cache: bool = True,
    callback: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Tensor:
    """Continue codes (b, q, t), t may be 0, to (b, q, timesteps).

    With a cache, the model reads each step once, else all previous steps for each new one. The codes are the same.
    """
    batch, codebooks, given = init_codes.shape
    if given >= timesteps:
        raise ValueError(f"init_data already has {given} frames, and max_gen_len is {timesteps}; raise max_gen_len")
    pattern = lm.pattern_provider.get_pattern(timesteps)
    codes = init_codes.new_full((batch, codebooks, timesteps), _UNKNOWN)
    codes[..., :given] = init_codes
    sequence = pattern.build_sequence(codes, lm.masked_token_id)
    prepended = inputs.get("prepend_cond")
    before = 0 if prepended is None else prepended.shape[1]  # positions before the codes
    cache = KeyValueCache(pattern.num_steps + before) if use_cache else None
    inputs = {
        name: None if value is not None and name.endswith("_mask") and bool(value.all()) else value  # faster unmasked
        for name, value in (inputs if guidance is None else guidance.double(inputs)).items()
    }
    start, end, read = pattern.first_step(given), pattern.num_steps, 0
    for step in range(start, end):
        seen = sequence[..., read:step]
        seen = seen if guidance is None else torch.cat([seen, seen])
        logits = lm(seen, last_only=True, cache=cache, **inputs)[:, :, -1]
        logits = logits if guidance is None else guidance.lead(logits)
        column = sequence[..., step]
        sequence[..., step] = torch.where(column == _UNKNOWN, sample_tokens(logits, **sampling), column)
        read = step if cache is not None else 0
        if callback is not None:
            callback(step + 1 - start, end - start)
    return pattern.revert_sequence(sequence)
