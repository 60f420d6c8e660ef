"""Noise of a run, from seeds that are independent of the random state of the process.

A generator gives the numbers that `torch.manual_seed` and the global functions would give, so the same seed makes the
same audio as in the original stable-audio-tools, on the same kind of device.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from stable_audio_tools.core.seeds import draw_seed

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LARGEST_SEED = 2**63 - 1  # of Brownian trees too
_process_state = threading.RLock()


def resolve_seeds(seed: int | Sequence[int], batch_size: int) -> list[int]:
    """Return one seed for the batch or one per item; -1 draws one, and seeds of 64 bits are folded into 63."""
    if isinstance(seed, list | tuple) and len(seed) != batch_size:
        raise ValueError(f"seed lists {len(seed)} seeds for batch_size {batch_size}; give one seed, or one per item")
    given: list[Any] = list(seed) if isinstance(seed, list | tuple) else [seed]
    for value in given:
        if not hasattr(value, "__index__") or not -1 <= value < 2**64:
            raise ValueError(f"a seed must be a whole number from 0 to 2^64 - 1, or -1 to draw one; got {value!r}")
        if value >= _LARGEST_SEED:
            logger.warning("the seed %d is used as %d: the largest is 2^63 - 2", value, value % _LARGEST_SEED)
    seeds = [draw_seed() if value == -1 else index(value) % _LARGEST_SEED for value in given]
    level = logging.INFO if -1 in given else logging.DEBUG  # a seed that was given is known to who gave it
    logger.log(level, "seed %s", ", ".join(map(str, seeds)))
    return seeds


class NoiseSource(Protocol):
    """Source of the random numbers of samplers."""

    def like(self, x: Tensor) -> Tensor:
        """Return standard normal noise in the shape, type and device of x (b, d, t)."""
        ...

    def tree_seeds(self) -> int | list[int]:
        """Return the seed of a Brownian tree for the batch, or one seed per item."""
        ...


class ProcessNoise:
    """Noise from the random state of the process, for callers that manage it."""

    def like(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def tree_seeds(self) -> int:
        return int(torch.randint(0, _LARGEST_SEED, []).item())


class RandomStream:
    """Random numbers of one seed, on the CPU and on a device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self._own = self._cpu if device.type == "cpu" else torch.Generator(device).manual_seed(seed)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(tuple(shape), generator=self._own, device=self.device, dtype=dtype)

    def tree_seed(self) -> int:
        return int(torch.randint(0, _LARGEST_SEED, [], generator=self._cpu).item())

    def state(self) -> tuple[Tensor, ...]:
        return self._cpu.get_state(), self._own.get_state()

    def restore(self, state: Sequence[Tensor]) -> None:
        for generator, saved in zip((self._cpu, self._own), state):
            generator.set_state(saved)

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Redirect random numbers that models draw from the state of the process to this stream, inside the block.

        One thread at a time: the state belongs to the process.
        """
        with preserved_random_state(self.device):
            _set_process_state(self.device, self.state())
            try:
                yield
            finally:
                self.restore(_get_process_state(self.device))


class SeededNoise:
    """Noise from one stream for the batch, or one per item, which then does not depend on its batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.streams = [RandomStream(seed, device) for seed in seeds]

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if len(self.streams) == 1:
            return self.streams[0].normal(shape, dtype)
        return torch.cat([stream.normal((1, *shape[1:]), dtype) for stream in self.streams])

    def like(self, x: Tensor) -> Tensor:
        return self.normal(x.shape, x.dtype)

    def tree_seeds(self) -> int | list[int]:
        seeds = [stream.tree_seed() for stream in self.streams]
        return seeds[0] if len(seeds) == 1 else seeds

    def item(self, number: int) -> "SeededNoise":
        """Return the noise of one item."""
        alone = SeededNoise((), self.streams[number].device)
        alone.streams = [self.streams[number]]
        return alone

    def feed(self, whole: Callable[[], T], item: Callable[[int], T], join: Callable[[list[T]], T]) -> T:
        """Return the result of `whole`, which may draw noise.

        If it did, and the items have individual seeds, the results of `item` are joined instead.
        """
        first = self.streams[0]
        before = first.state()
        with first.in_charge():
            result = whole()
        if len(self.streams) == 1 or all(map(torch.equal, before, first.state())):
            return result
        first.restore(before)
        results = []
        for number, stream in enumerate(self.streams):
            with stream.in_charge():
                results.append(item(number))
        return join(results)


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random state of the process after the block."""
    with _process_state:
        saved = _get_process_state(device)
        try:
            yield
        finally:
            _set_process_state(device, saved)


def _get_process_state(device: torch.device) -> tuple[Tensor, ...]:
    cpu = torch.get_rng_state()
    if device.type == "cpu":
        return cpu, cpu
    module = torch.get_device_module(device)
    return cpu, module.get_rng_state(device) if device.type == "cuda" else module.get_rng_state()


def _set_process_state(device: torch.device, state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1])
