"""Patterns: the order in which a language model reads and writes codes (b, q, t) of several codebooks.

A pattern assigns every code to a step of a sequence (b, q, s). Step 0 and, in each codebook, every step without a code
hold mask tokens. The output of the model at a step predicts the next one. For q = 3, t = 4:

    parallel     delay             unroll                          coarse_first
    . 0 1 2 3    . 0 1 2 3 . .     . 0 . . 1 . . 2 . . 3 . .       . 0 1 2 3 . . . .
    . 0 1 2 3    . . 0 1 2 3 .     . . 0 . . 1 . . 2 . . 3 .       . . . . . 0 1 2 3
    . 0 1 2 3    . . . 0 1 2 3     . . . 0 . . 1 . . 2 . . 3       . . . . . 0 1 2 3

"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

PatternName = Literal["delay", "parallel", "unroll", "musiclm", "coarse_first"]


@dataclass(frozen=True)
class CodePattern:
    """Steps (q, t) of all codes; training reads the first `num_training_steps` of the `num_steps`."""

    steps: Tensor
    num_steps: int
    num_training_steps: int

    @property
    def num_codebooks(self) -> int:
        return self.steps.shape[0]

    @property
    def timesteps(self) -> int:
        return self.steps.shape[1]

    def first_step(self, time: int) -> int:
        """Return the first step that holds a code of a frame."""
        return int(self.steps[:, time].min())

    def build_sequence(self, codes: Tensor, mask_token: int) -> Tensor:
        """Convert codes (b, q, t) to the sequence (b, q, num_steps)."""
        self._check(codes)
        sequence = codes.new_full((*codes.shape[:2], self.num_steps), mask_token)
        return sequence.scatter(-1, self._indices(codes), codes)

    def revert_sequence(self, sequence: Tensor) -> Tensor:
        """Convert the sequence (b, q, num_steps) to codes (b, q, t)."""
        return sequence.gather(-1, self._indices(sequence))

    def revert_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Convert logits (b, q, s, card) of the first steps to logits of codes (b, q, t, card), and a mask (q, t).

        The mask is False, and the logits are NaN, for codes that those steps do not predict.
        """
        predicted_at = self.steps.to(logits.device) - 1
        mask = predicted_at < logits.shape[2] - 1
        rows = predicted_at.clamp(max=logits.shape[2] - 1)[None, :, :, None].expand(
            len(logits), -1, -1, logits.shape[3]
        )
        return logits.gather(2, rows).masked_fill(~mask[None, :, :, None], float("nan")), mask

    def _indices(self, like: Tensor) -> Tensor:
        return self.steps.to(like.device).expand(like.shape[0], -1, -1)

    def _check(self, codes: Tensor) -> None:
        if codes.shape[1:] != self.steps.shape:
            expected = tuple(self.steps.shape)
            raise ValueError(
                f"codes must be (batch, {expected[0]} codebooks, {expected[1]} frames), got {tuple(codes.shape)}"
            )


def delay(num_codebooks: int, timesteps: int, delays: Sequence[int] | None = None) -> CodePattern:
    """Place each codebook one step later than the previous one, or by `delays`."""
    shifts = torch.arange(num_codebooks) if delays is None else torch.tensor(list(delays))
    steps = 1 + shifts[:, None] + torch.arange(timesteps)
    return CodePattern(steps, 1 + timesteps + int(shifts.max()), 1 + timesteps)


def parallel(num_codebooks: int, timesteps: int) -> CodePattern:
    """Place all codes of a frame in one step."""
    return delay(num_codebooks, timesteps, [0] * num_codebooks)


def unroll(num_codebooks: int, timesteps: int) -> CodePattern:
    """Place one code per step, frame after frame."""
    return _flat(torch.arange(num_codebooks)[:, None] + num_codebooks * torch.arange(timesteps))


def musiclm(num_codebooks: int, timesteps: int, group_by: int = 2) -> CodePattern:
    """Place one code per step: all frames of the first `group_by` codebooks, then all frames of the next ones."""
    codebook = torch.arange(num_codebooks)[:, None]
    first = codebook // group_by * group_by
    width = (num_codebooks - first).clamp(max=group_by)
    return _flat(first * timesteps + width * torch.arange(timesteps) + codebook - first)


def coarse_first(num_codebooks: int, timesteps: int, delays: Sequence[int] | None = None) -> CodePattern:
    """Place all frames of the first codebook, then the others side by side, or by `delays`.

    The other codebooks see all of the first one: generate as many frames as the model was trained on.
    """
    if num_codebooks == 1:
        return parallel(1, timesteps)
    fine = delay(num_codebooks - 1, timesteps, delays or [0] * (num_codebooks - 1))
    coarse = parallel(1, timesteps)
    return CodePattern(
        torch.cat([coarse.steps, fine.steps + timesteps]),
        fine.num_steps + timesteps,
        fine.num_training_steps + timesteps,
    )


def _flat(order: Tensor) -> CodePattern:
    length = 1 + order.numel()
    return CodePattern(1 + order, length, length)


@dataclass(frozen=True)
class PatternProvider:
    """A pattern for any number of frames."""

    layout: Callable[[int, int], CodePattern]
    num_codebooks: int

    def get_pattern(self, timesteps: int) -> CodePattern:
        """Return the pattern for this number of frames."""
        return self.layout(self.num_codebooks, timesteps)


_LAYOUTS: dict[str, Callable[[int, int], CodePattern]] = {
    "delay": delay,
    "parallel": parallel,
    "unroll": unroll,
    "musiclm": musiclm,
    "coarse_first": coarse_first,
}
assert set(_LAYOUTS) == set(get_args(PatternName))


def pattern_by_name(name: str, num_codebooks: int) -> PatternProvider:
    """Return the pattern that a config names."""
    if name not in _LAYOUTS:
        raise ValueError(f"codebook_pattern: no pattern named {name!r}; allowed: {', '.join(_LAYOUTS)}")
    return PatternProvider(_LAYOUTS[name], num_codebooks)
