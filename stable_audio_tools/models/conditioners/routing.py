"""From conditions by id to the inputs of a network."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Condition tokens (b, s, d), and where they say something (b, s)."""

    tokens: Tensor
    mask: Tensor


def find_condition(conditions: Mapping[str, Any], id: str) -> tuple[Tensor, Tensor | None]:
    """A condition and its mask; None stands for "everywhere"."""
    if id not in conditions:
        given = ", ".join(sorted(conditions)) or "none"
        raise ValueError(f"condition {id!r} is missing (conditions given: {given}); add it to the conditioning")
    tensor, *rest = conditions[id]
    return tensor, rest[0] if rest else None


def join_tokens(conditions: Mapping[str, Any], ids: Sequence[str]) -> Tokens | None:
    """Conditions one after the other in time; a vector (b, d) is one token. None without ids."""
    if not ids:
        return None
    tokens, masks = [], []
    for id in ids:
        tensor, mask = find_condition(conditions, id)
        tensor = tensor[:, None] if tensor.ndim == 2 else tensor
        if mask is None:
            mask = torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)
        tokens.append(tensor)
        masks.append(mask.to(tensor.device).bool().expand(tensor.shape[:2]))
    return Tokens(torch.cat(tokens, dim=1), torch.cat(masks, dim=1))


def join_vectors(conditions: Mapping[str, Any], ids: Sequence[str]) -> Tensor | None:
    """Conditions of one vector per item beside each other, (b, sum of widths). None without ids."""
    if not ids:
        return None
    vectors = []
    for id in ids:
        tensor, _ = find_condition(conditions, id)
        if tensor.ndim == 3 and tensor.shape[1] != 1:
            raise ValueError(
                f"condition {id!r} has {tensor.shape[1]} tokens, and a global condition is one vector; "
                "route it by cross_attention_cond_ids or prepend_cond_ids"
            )
        vectors.append(tensor[:, 0] if tensor.ndim == 3 else tensor)
    return torch.cat(vectors, dim=-1)
