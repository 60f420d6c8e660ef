"""Published helpers of transformers, for other projects that build their own layers."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _checkpoint

from stable_audio_tools.models.transformer.rotary import Rotary, as_rotary, rotate


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function whose activations are computed again in the backward pass."""
    return _checkpoint(function, *args, **{"use_reentrant": False, **kwargs})


def create_causal_mask(i: int, j: int, device: torch.device | str | None = None) -> Tensor:
    """(i, j), True where the key comes after the query; the last query is at the last key."""
    return torch.ones(i, j, device=device, dtype=torch.bool).triu(j - i + 1)


def or_reduce(masks: Sequence[Tensor]) -> Tensor:
    """Return True where any of the masks is True."""
    return reduce(or_, masks)


def rotate_half(x: Tensor) -> Tensor:
    """(..., d), halves exchanged and the new first one negated."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def apply_rotary_pos_emb(t: Tensor, freqs: Tensor | Rotary, scale: float = 1) -> Tensor:
    """Turn the first channels of heads t (b, h, n, d) by angles (positions, rotated channels), the last n of them.

    The angles of the two halves are the same, as `RotaryEmbedding` gives them.
    """
    cos, sin = freqs if isinstance(freqs, Rotary) else as_rotary((freqs, 1.0))
    count, rotated = t.shape[-2], 2 * cos.shape[-1]
    turned = rotate(t, Rotary(cos[-count:], sin[-count:]))
    return turned if scale == 1 else torch.cat([turned[..., :rotated] * scale, turned[..., rotated:]], dim=-1)
