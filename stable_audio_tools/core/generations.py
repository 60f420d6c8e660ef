"""Generations of the original package, and the defaults in which they differ.

The same call, weights and seed give other results in stable-audio-tools 0.0.20 than in 0.0.19: samplers, schedules,
guidance and spectral losses have other defaults or formulas. stable-audio-3, which only generates, follows 0.0.20 but
for a few points. Models remember the generation that they come from
(`sampling_version`); what has no model follows the generation of the surrounding `generation(...)` block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

Generation = Literal["0.0.19", "0.0.20", "stable-audio-3"]
GENERATIONS: tuple[Generation, ...] = get_args(Generation)

_current: ContextVar[Generation] = ContextVar("generation", default="0.0.19")


@contextmanager
def generation(version: Generation) -> Iterator[None]:
    """Use the defaults of a generation for what is called inside the block."""
    token = _current.set(check_generation(version))
    try:
        yield
    finally:
        _current.reset(token)


def current_generation() -> Generation:
    """The generation whose defaults hold here: "0.0.19" outside of any block."""
    return _current.get()


def check_generation(version: str) -> Generation:
    """The version, if it is a known one."""
    for known in GENERATIONS:
        if version == known:
            return known
    raise ValueError(f"no generation {version!r} of sampling defaults; allowed: {', '.join(GENERATIONS)}")
