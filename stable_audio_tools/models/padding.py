"""Which frames of an item hold sound: the loader tells it in samples or frames, networks ask in frames of theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def padding_masks(metadata: Sequence[Mapping[str, Any]], length: int, device: torch.device) -> Tensor | None:
    """Which of `length` frames hold sound: (b, length) bool, or None where the loader gives no masks."""
    if any("padding_mask" not in entry for entry in metadata):
        return None
    rows = []
    for entry in metadata:
        mask = entry["padding_mask"]
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        rows.append(torch.as_tensor(mask, device=device).reshape(1, 1, -1).float())
    return torch.cat([F.interpolate(row, size=length, mode="nearest")[:, 0] for row in rows]).bool()
