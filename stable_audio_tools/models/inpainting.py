"""Random masks for training a model to fill gaps: 1 where the latents are given, 0 where they are generated."""

import random
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from stable_audio_tools.core.devices import send

DEFAULT_PROBABILITIES = (0.1, 0.8, 0.1)


class MaskType(Enum):
    """The masked part: some segments, everything, everything after some frame, or spans of a random share."""

    RANDOM_SEGMENTS = 0
    FULL_MASK = 1
    CAUSAL_MASK = 2
    RANDOM_SPANS = 3


def _checked_probabilities(probabilities: Sequence[float] | None) -> Sequence[float]:
    if probabilities is None:
        return DEFAULT_PROBABILITIES
    names = ", ".join(kind.name.lower() for kind in MaskType)
    if len(probabilities) not in (len(DEFAULT_PROBABILITIES), len(MaskType)):
        raise ValueError(
            f"mask_type_probabilities must have {len(DEFAULT_PROBABILITIES)} or {len(MaskType)} entries ({names}), "
            f"got {len(probabilities)}"
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
    *,
    mask_padding: bool = False,
    force_mask_type: MaskType | None = None,
    max_spans: int = 4,
    mask_ratio_range: Sequence[float] = (0.2, 1.0),
    span_count_weights: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (masked latents, mask (b, 1, t)) of latents (b, d, t), drawn per item with Python's generator or `rng`.

    `padding_masks` (b, t) is 1 at frames that are not padding. Segments and the cut of a causal mask are within these
    frames; a full mask includes the padding, as every mask does with `mask_padding`. `padding_masks` on the host avoid
    a wait for the device. `mask_type_probabilities` follow the order of `MaskType`; three of them leave out spans.
    Spans do not overlap, and together cover a share of the item drawn from `mask_ratio_range`; `span_count_weights` are
    the frequencies of one span, two spans and so on, up to `max_spans`.
    """
    weights = _checked_probabilities(mask_type_probabilities)
    if max_mask_segments < 1:
        raise ValueError(f"max_mask_segments is {max_mask_segments}; at least one segment must be possible")
    shape = (len(sequence), sequence.shape[-1])
    if padding_masks.shape != shape:
        raise ValueError(f"padding_masks must be shaped (batch, frames) = {shape}, got {tuple(padding_masks.shape)}")
    draw: random.Random = rng if rng is not None else random  # type: ignore[assignment]
    mask = torch.ones(len(sequence), 1, sequence.shape[-1])
    for row, length in zip(mask[:, 0], (padding_masks == 1).sum(dim=-1).tolist()):
        kind = force_mask_type or draw.choices(list(MaskType)[: len(weights)], weights=weights)[0]
        if kind is MaskType.FULL_MASK:
            row.zero_()
        elif length == 0:
            pass
        elif kind is MaskType.CAUSAL_MASK:
            row[draw.randint(0, length) : length] = 0
        elif kind is MaskType.RANDOM_SPANS:
            for start, end in _spans(length, max_spans, mask_ratio_range, span_count_weights, draw):
                row[start:end] = 0
        else:
            for start, end in _segments(length, max_mask_segments, draw):
                row[start:end] = 0
        if mask_padding and length > 0:
            row[length:] = 0
    mask = send(mask, sequence.device)
    return sequence * mask.to(sequence.dtype), mask


def _segments(length: int, most: int, draw: random.Random) -> list[tuple[int, int]]:
    """Draw segments that together cover at most `length` if they do not overlap."""
    count = draw.randint(1, most)
    longest = max(1, length // count)
    segments = []
    for _ in range(count):
        size = draw.randint(1, longest)
        start = draw.randint(0, length - size)
        segments.append((start, start + size))
    return segments


_SPAN_WEIGHTS = (4.0, 2.0, 1.0, 1.0)  # of one, two, three and four spans; more are as frequent as the last


def _spans(
    length: int, most: int, share: Sequence[float], weights: Sequence[float] | None, draw: random.Random
) -> list[tuple[int, int]]:
    """Draw spans that do not overlap and cover a random share of `length`; the longest is placed first."""
    budget = max(1, int(draw.uniform(share[0], share[1]) * length))
    given = list(weights or _SPAN_WEIGHTS)[:most]
    given += [given[-1]] * (most - len(given))
    count = min(draw.choices(range(1, most + 1), weights=given)[0], length)
    parts = [draw.random() for _ in range(count)]
    sizes = [max(1, int(part / sum(parts) * budget)) for part in parts]
    sizes[0] += max(0, budget - sum(sizes))
    for index, size in enumerate(sizes):
        sizes[index] -= min(max(0, sum(sizes) - budget), size - 1)
    spans: list[tuple[int, int]] = []
    for size in sorted(sizes, reverse=True):
        start = _free_place(size, length, spans, draw)
        if start is not None:
            spans.append((start, start + size))
    return spans


def _free_place(size: int, length: int, taken: Sequence[tuple[int, int]], draw: random.Random) -> int | None:
    """Draw a start that overlaps nothing; after many misses take the first free one, or None if none is free."""

    def is_free(start: int) -> bool:
        return all(end <= start or begin >= start + size for begin, end in taken)

    for _ in range(50):
        start = draw.randint(0, length - size)
        if is_free(start):
            return start
    return next((start for start in range(length - size + 1) if is_free(start)), None)
