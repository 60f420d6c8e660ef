"""Drawing one of several tokens from logits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None  # of the batch, or one per item


def sample_tokens(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    generator: Generators = None,
) -> Tensor:
    """Logits (b, ..., card) to tokens (b, ...).

    Temperature 0 takes the likeliest. `top_p` (0: off) draws from the likeliest tokens whose probabilities add up to
    it, otherwise `top_k` (0: off) from so many of them.
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
    """Refuse what `sample_tokens` has no meaning for."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temp: expected 0 (the likeliest token) or more, got {temperature:g}")
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (off) or more, got {top_k}")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p: expected 0 (off) to 1, got {top_p:g}")


def _draw(weights: Tensor, generator: Generators) -> Tensor:
    """One index by weights that need not sum to 1: the first arrival among exponential clocks of these rates."""
    arrivals = torch.empty_like(weights)
    if isinstance(generator, Sequence):
        if len(generator) != len(weights):
            raise ValueError(f"{len(generator)} generators for {len(weights)} items; give one, or one per item")
        for item, own in zip(arrivals, generator):
            item.exponential_(1, generator=own)
    else:
        arrivals.exponential_(1, generator=generator)
    return (weights / arrivals).argmax(dim=-1)
