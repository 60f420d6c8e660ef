"""Random choices of the data as functions of (seed, epoch, item), independent of workers and ranks."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Draw(NamedTuple):
    """One visit to one item."""

    item: int
    epoch: int = 0
    visit: int = 0  # counts visits within an epoch, where a dataset's weight is above 1
    seed: int = 0  # of the run
    position: int = 0  # place in the order of this process; no choice depends on it

    @property
    def number(self) -> int:
        """Return 64 bits that depend on the run's seed, the epoch, the item and the visit."""
        words = f"{self.seed}/{self.epoch}/{self.item}/{self.visit}".encode()
        return int.from_bytes(blake2b(words, digest_size=8).digest(), "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch (CPU) inside the block, and restore their states afterwards."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.default_generator
    torch_state = generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        generator.set_state(torch_state)


class Order(NamedTuple):
    """The items of one epoch, for all processes together."""

    items: NDArray[np.int64]
    visits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)


def order_length(groups: NDArray[np.int64], weights: NDArray[np.float64]) -> int:
    """Return the length of an epoch: each group of items counts by its weight."""
    sizes = np.bincount(groups, minlength=len(weights))
    return int(np.rint(sizes * weights).sum())


def make_order(groups: NDArray[np.int64], weights: NDArray[np.float64], epoch: int, seed: int, shuffle: bool) -> Order:
    """Return the order of an epoch; a group of weight 2.5 is visited twice, and half of it a third time."""
    rng = np.random.default_rng([seed, epoch])
    items, visits = [], []
    for group, weight in enumerate(weights):
        members = np.flatnonzero(groups == group)
        whole = int(weight)
        rest = int(np.rint(len(members) * weight)) - whole * len(members)
        parts = [members] * whole + ([np.sort(rng.permutation(members)[:rest])] if rest else [])
        items += parts
        visits += [np.full(len(part), visit) for visit, part in enumerate(parts)]
    order = Order(np.concatenate(items or [np.zeros(0, np.int64)]), np.concatenate(visits or [np.zeros(0, np.int64)]))
    if shuffle:
        mixed = rng.permutation(len(order))
        return Order(order.items[mixed], order.visits[mixed])
    return order
