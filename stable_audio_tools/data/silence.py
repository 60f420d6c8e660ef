"""Long silences in speech and solo recordings, cut down to short ones."""

import random

import torch
from torch import Tensor


def remove_long_silence(
    audio: Tensor,
    sample_rate: int,
    level: float = 0.01,
    kept_seconds: float = 0.5,
    longest_seconds: float = 0.25,
    rng: random.Random | None = None,
) -> Tensor:
    """Mono audio `(1, n)`, in which each silence longer than `longest_seconds` is replaced by a piece of itself.

    Silent is what stays below `level` (of full scale). The piece lasts `kept_seconds`, or is the whole silence where
    that is shorter, and comes from a place drawn from `rng`.
    """
    draw = rng or random.Random(0)
    kept, longest = int(kept_seconds * sample_rate), int(longest_seconds * sample_rate)
    silent = audio[0].abs() < level
    ends = (torch.diff(silent.int()).nonzero()[:, 0] + 1).tolist()
    pieces = []
    start = 0
    for stop in [*ends, audio.shape[1]]:
        length = stop - start
        if length and silent[start] and length > max(longest, kept):
            begin = start + draw.randint(0, length - kept)
            pieces.append(audio[:, begin : begin + kept])
        else:
            pieces.append(audio[:, start:stop])
        start = stop
    return torch.cat(pieces, dim=1)
