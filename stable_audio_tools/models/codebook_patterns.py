"""Published import path of the patterns of language models: a class for each, over the functions of `models.lm`."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from stable_audio_tools.models.lm import patterns
from stable_audio_tools.models.lm.patterns import CodePattern
from stable_audio_tools.models.lm.patterns import PatternProvider as CodebooksPatternProvider

__all__ = [
    "CoarseFirstPattern",
    "CodebooksPatternProvider",
    "DelayedPatternProvider",
    "LayoutCoord",
    "MusicLMPattern",
    "ParallelPatternProvider",
    "Pattern",
    "PatternLayout",
    "UnrolledPatternProvider",
]


class LayoutCoord(NamedTuple):
    """The place of a code: its frame and its codebook."""

    t: int
    q: int


PatternLayout = list[list[LayoutCoord]]  # the codes of each step


class Pattern(CodePattern):
    """A pattern under its published names: sequences (b, q, s) of codes (b, q, t)."""

    @property
    def num_sequence_steps(self) -> int:
        """Number of steps of the sequence, without the one that holds only mask tokens."""
        return self.num_steps - 1

    def build_pattern_sequence(self, z: Tensor, special_token: int) -> tuple[Tensor, Tensor, Tensor]:
        """Convert codes (b, q, t) to the sequence (b, q, s), the frame of each step, and a mask of those steps."""
        sequence = self.build_sequence(z, special_token)
        frames = z.new_full((self.num_codebooks, self.num_steps), self.timesteps)
        steps = self.steps.to(z.device)
        frames.scatter_(1, steps, self._frames(steps))
        return sequence, frames, frames < self.timesteps

    def revert_pattern_sequence(self, s: Tensor, special_token: int) -> tuple[Tensor, Tensor, Tensor]:
        """Convert the sequence (b, q, s) to codes (b, q, t), the step of each, and a mask that is true everywhere."""
        steps = self.steps.to(s.device)
        return self.revert_sequence(s), steps, steps >= 0

    @staticmethod
    def _frames(steps: Tensor) -> Tensor:
        """Return the frame of each code, (q, t)."""
        return steps.new_ones(steps.shape).cumsum(1) - 1


class _Provider(CodebooksPatternProvider):
    """A pattern of a fixed kind for any number of frames."""

    def get_pattern(self, timesteps: int) -> Pattern:
        pattern = super().get_pattern(timesteps)
        return Pattern(pattern.steps, pattern.num_steps, pattern.num_training_steps)


class DelayedPatternProvider(_Provider):
    """Each codebook one step later than the one before it, or by `delays`."""

    def __init__(self, n_q: int, delays: Sequence[int] | None = None) -> None:
        super().__init__(partial(patterns.delay, delays=delays), n_q)


class ParallelPatternProvider(_Provider):
    """All codes of a frame in one step."""

    def __init__(self, n_q: int) -> None:
        super().__init__(patterns.parallel, n_q)


class UnrolledPatternProvider(_Provider):
    """One code per step: the codes of a frame, then of the next frame."""

    def __init__(self, n_q: int) -> None:
        super().__init__(patterns.unroll, n_q)


class CoarseFirstPattern(_Provider):
    """All frames of the first codebook, then the others."""

    def __init__(self, n_q: int, delays: Sequence[int] | None = None) -> None:
        super().__init__(partial(patterns.coarse_first, delays=delays), n_q)


class MusicLMPattern(_Provider):
    """All frames of the first `group_by` codebooks, then of the next."""

    def __init__(self, n_q: int, group_by: int = 2) -> None:
        super().__init__(partial(patterns.musiclm, group_by=group_by), n_q)
