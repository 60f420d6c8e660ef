"""Padding masks, converted from the samples or frames of the loader to the frames of a network."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.devices import send


def padding_masks(metadata: Sequence[Mapping[str, Any]], length: int, device: torch.device) -> Tensor | None:
    """Return a mask (b, length) of the frames that hold sound, or None if the loader supplies no masks.

    A frame takes the value of the mask at its first sample, so few values are read or copied.
    """
    if any("padding_mask" not in entry for entry in metadata):
        return None
    rows = []
    for entry in metadata:
        mask = entry["padding_mask"]
        flat = torch.as_tensor(mask[0] if isinstance(mask, list | tuple) else mask).reshape(-1)
        rows.append(flat[first_samples(len(flat), length).to(flat.device)] != 0)
    return send(torch.stack(rows), device)


@lru_cache(maxsize=64)
def first_samples(samples: int, frames: int) -> Tensor:
    """Return the start of each of `frames` equal stretches of `samples`, as in nearest-neighbour interpolation."""
    positions = torch.arange(samples, dtype=torch.float64)[None, None]
    return F.interpolate(positions, size=frames, mode="nearest")[0, 0].long()
