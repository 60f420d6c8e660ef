"""Lengths of the items of a batch, as their metadata say them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def create_padding_mask_from_lengths(valid_lengths: Tensor, total_seq_len: int) -> Tensor:
    """Lengths (b,) as a mask (b, total), True at real frames."""
    return torch.arange(total_seq_len, device=valid_lengths.device) < valid_lengths[:, None]


def compute_effective_seq_len_from_conditioning(
    conditioning: Sequence[Mapping[str, Any]] | None,
    sample_rate: int,
    downsampling_ratio: int = 1,
    device: str | torch.device = "cpu",
) -> Tensor | None:
    """Latent frames (b,) of the items' `seconds_total`; None unless every item has one."""
    seconds = seconds_of(conditioning)
    if seconds is None:
        return None
    frames = [math.ceil(int(value * sample_rate) / downsampling_ratio) for value in seconds]
    return torch.tensor(frames, dtype=torch.float32, device=device)


def seconds_of(conditioning: Sequence[Mapping[str, Any]] | None) -> list[float] | None:
    """`seconds_total` of every item; None unless all have one."""
    if not conditioning or not all("seconds_total" in item for item in conditioning):
        return None
    return [_number(item["seconds_total"]) for item in conditioning]


def _number(value: Any) -> float:
    """A number, which collation may have wrapped in a list of one."""
    return float(value[0] if isinstance(value, list | tuple) else value)
