"""Random masks for training a model to fill gaps: 1 where the latents are given, 0 where they are to be generated."""

import random
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from stable_audio_tools.core.devices import send

DEFAULT_PROBABILITIES = (0.1, 0.8, 0.1)


class MaskType(Enum):
    """What is taken away: some segments, everything, or everything after some frame."""

    RANDOM_SEGMENTS = 0
    FULL_MASK = 1
    CAUSAL_MASK = 2


def _checked_probabilities(probabilities: Sequence[float] | None) -> Sequence[float]:
    if probabilities is None:
        return DEFAULT_PROBABILITIES
    names = ", ".join(kind.name.lower() for kind in MaskType)
    if len(probabilities) != len(MaskType):
        raise ValueError(
            f"mask_type_probabilities must have {len(MaskType)} entries ({names}), got {len(probabilities)}"
        )
    if min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-5:
        raise ValueError(
            f"mask_type_probabilities ({names}) must be at least 0 and sum to 1, got {list(probabilities)}"
        )
    return probabilities


def random_inpaint_mask(
    sequence: Tensor,
    padding_masks: Tensor,
    max_mask_segments: int = 10,
    mask_type_probabilities: Sequence[float] | None = None,
    rng: random.Random | None = None,
) -> tuple[Tensor, Tensor]:
    """Latents (b, d, t) to (masked latents, mask (b, 1, t)), drawn for each item with Python's generator or `rng`.

    `padding_masks` (b, t) is 1 on what is no padding. Segments and the cut of a causal mask lie within that; a full
    mask takes the padding too. `padding_masks` on the host spares a wait for the device. The probabilities are those of
    the members of `MaskType`, in their order.
    """
    weights = _checked_probabilities(mask_type_probabilities)
    if max_mask_segments < 1:
        raise ValueError(f"max_mask_segments is {max_mask_segments}; at least one segment must be possible")
    draw: random.Random = rng if rng is not None else random  # type: ignore[assignment]
    mask = torch.ones(len(sequence), 1, sequence.shape[-1])
    for row, length in zip(mask[:, 0], _real_lengths(sequence, padding_masks)):
        kind = draw.choices(list(MaskType), weights=weights)[0]
        if kind is MaskType.FULL_MASK:
            row.zero_()
        elif length == 0:
            continue
        elif kind is MaskType.CAUSAL_MASK:
            row[draw.randint(0, length) : length] = 0
        else:
            for start, end in _segments(length, max_mask_segments, draw):
                row[start:end] = 0
    mask = send(mask, sequence.device)
    return sequence * mask.to(sequence.dtype), mask


def _segments(length: int, most: int, draw: random.Random) -> list[tuple[int, int]]:
    """Segments that together cover at most `length`, if they do not overlap."""
    count = draw.randint(1, most)
    longest = max(1, length // count)
    segments = []
    for _ in range(count):
        size = draw.randint(1, longest)
        start = draw.randint(0, length - size)
        segments.append((start, start + size))
    return segments


def _real_lengths(sequence: Tensor, padding_masks: Tensor) -> list[int]:
    """Frames without padding, for each item."""
    wanted = (len(sequence), sequence.shape[-1])
    if padding_masks.shape != wanted:
        raise ValueError(f"padding_masks must be shaped (batch, frames) = {wanted}, got {tuple(padding_masks.shape)}")
    return [int(count) for count in (padding_masks == 1).sum(dim=-1).tolist()]
