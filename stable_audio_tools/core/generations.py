"""Generations of the original package and their defaults.

The same call, weights and seed give different results in stable-audio-tools 0.0.19 and 0.0.20: samplers, schedules,
guidance and spectral losses have different defaults or formulas. stable-audio-3, which only generates, follows 0.0.20
with a few exceptions. A model stores its generation (`sampling_version`); code without a model uses the one of the
enclosing `generation(...)` block.
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
    """Use the defaults of a generation inside the block."""
    token = _current.set(check_generation(version))
    try:
        yield
    finally:
        _current.reset(token)


def current_generation() -> Generation:
    """Return the generation of the enclosing block; "0.0.19" outside of any."""
    return _current.get()


def check_generation(version: str) -> Generation:
    """Return the version if it is a known generation; raise otherwise."""
    for known in GENERATIONS:
        if version == known:
            return known
    raise ValueError(f"no generation {version!r} of sampling defaults; allowed: {', '.join(GENERATIONS)}")
