"""Overlapping chunks: long audio in bounded memory.

Times are counted in frames of the latents. A chunk begins every `size - overlap` frames, and the last one is moved left
to end with the clip. The first half of every overlap comes from the earlier chunk, the second half from the later one:

    chunk 0   |----------------|
    chunk 1               |----------------|
    chunk 2                     |----------------|        the last one overlaps more
    kept      |0000000000000|1111111|222222222222|

If the overlap covers the receptive field twice, the result equals a single pass over the whole clip.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BATCH_SAMPLES = 2**18  # audio samples in one call of a network, unless one chunk alone is longer


@dataclass(frozen=True)
class ChunkPlan:
    """Positions of the chunks of a clip of `frames` frames, and how the chunks are joined."""

    frames: int
    size: int
    overlap: int
    crossfade: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"chunk_size must be at least 1 frame, got {self.size}")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"overlap must be at least 0 and less than chunk_size ({self.size}), got {self.overlap}")

    @property
    def starts(self) -> list[int]:
        """First frame of each chunk."""
        last = max(self.frames - self.size, 0)
        starts = list(range(0, last + 1, self.size - self.overlap))
        return starts if starts[-1] == last else [*starts, last]

    def split(self, x: Tensor, step: int) -> list[Tensor]:
        """Cut the last axis, of `step` entries per frame; entries past the last frame belong to the last chunk."""
        starts = self.starts
        return [x[..., s * step : (s + self.size) * step] for s in starts[:-1]] + [x[..., starts[-1] * step :]]

    def join(self, chunks: Sequence[Tensor], step: int) -> Tensor:
        """Join chunks of `step` entries per frame.

        A chunk may end a little early (odd strides) or late (a partial last frame); only the end of the last one
        counts.
        """
        starts = [s * step for s in self.starts]
        joined = chunks[-1].new_zeros(*chunks[-1].shape[:-1], starts[-1] + chunks[-1].shape[-1])
        for index, (start, chunk) in enumerate(zip(starts, chunks)):
            skip = 0 if index == 0 else self.overlap // 2 * step
            if index > 0 and self.crossfade:
                skip = self.overlap * step
                # Weights of the later chunk, from 0 to 1, symmetric.
                ramp = (torch.arange(skip, device=chunk.device, dtype=chunk.dtype) + 0.5) / max(skip, 1)
                joined[..., start : start + skip].lerp_(chunk[..., :skip], ramp)
            joined[..., start + skip : start + chunk.shape[-1]] = chunk[..., skip:]
        return joined


def in_batches(
    function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor], samples_per_entry: float, max_items: int | None
) -> list[Tensor]:
    """Call `function` on several chunks (b, c, n) at once, at most `max_items` clips or MAX_BATCH_SAMPLES of audio."""
    results: list[Tensor] = []
    for group in _groups(chunks, samples_per_entry, max_items):
        clips, size = len(group[0]), _limit(group[0], samples_per_entry, max_items)
        stacked = torch.cat(group) if len(group) > 1 else group[0]
        parts = [function(part) for part in stacked.split(size)]
        results += (torch.cat(parts) if len(parts) > 1 else parts[0]).split(clips)
    return results


def _limit(chunk: Tensor, samples_per_entry: float, max_items: int | None) -> int:
    """Return how many clips of the length of `chunk` go into one call."""
    return max_items or max(1, int(MAX_BATCH_SAMPLES / max(chunk.shape[-1] * samples_per_entry, 1)))


def _groups(chunks: Sequence[Tensor], samples_per_entry: float, max_items: int | None) -> Iterator[list[Tensor]]:
    """Yield neighbours of equal length, as many as one call takes, and at least one."""
    group: list[Tensor] = []
    for chunk in chunks:
        room = _limit(chunk, samples_per_entry, max_items) // max(len(chunk), 1)
        if group and (len(group) >= room or group[0].shape != chunk.shape):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def join_info(plan: ChunkPlan, infos: Sequence[dict[str, Tensor]], frames: Sequence[int]) -> dict[str, object]:
    """Merge the info dicts of all chunks: average losses, join tensors with a time axis, list other values."""
    return {key: _join_entry(plan, [info[key] for info in infos], frames) for key in infos[0]}


def _join_entry(plan: ChunkPlan, values: Sequence[object], frames: Sequence[int]) -> object:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) < len(values):
        return list(values)
    if tensors[0].ndim == 0:
        return torch.stack(tensors).mean()
    hard = ChunkPlan(plan.frames, plan.size, plan.overlap)  # codes cannot be faded
    if all(value.shape[-1] == length for value, length in zip(tensors, frames)):
        return hard.join(tensors, 1)
    if tensors[0].ndim == 3 and all(value.shape[1] == length for value, length in zip(tensors, frames)):
        return hard.join([value.mT for value in tensors], 1).mT
    return tensors
