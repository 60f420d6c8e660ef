"""The order in which shards are read: by how many streams at once, in which process, and where to resume.

An epoch distributes its shards to a fixed number of streams. Items come from the streams in turn, which also mixes
neighbours of one shard with items of others. Processes and workers divide the streams, so their number does not change
the order as long as it divides the number of streams.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.data.draws import make_order

_ROUNDS_KEPT = 8  # streams are in different rounds where shards differ in size

DONE = -1  # offset of a visit that has been read to the end


class ShardPosition(NamedTuple):
    """A visit of a shard, and the byte of the shard where reading continues."""

    visit_number: int
    offset: int = 0


class ShardVisit(NamedTuple):
    """One reading of one shard."""

    shard: int
    epoch: int
    visit: int


class ShardOrder(Protocol):
    """The order of shards."""

    def __getitem__(self, visit_number: int) -> ShardVisit: ...

    def share(self, stream: int, streams: int) -> list[ShardPosition]:
        """Return the positions at which one of the streams begins."""

    def walk(self, left: Sequence[ShardPosition], streams: int) -> Iterator[ShardPosition]:
        """Yield the positions that a stream reads, given the rest of its share."""


class OnePass:
    """Every shard once, or by the weight of its entry, in an order that depends on seed and epoch."""

    def __init__(
        self, groups: NDArray[np.int64], weights: NDArray[np.float64], epoch: int, seed: int, shuffle: bool
    ) -> None:
        self.epoch = epoch
        self.order = make_order(groups, weights, epoch, seed, shuffle)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, visit_number: int) -> ShardVisit:
        return ShardVisit(int(self.order.items[visit_number]), self.epoch, int(self.order.visits[visit_number]))

    def share(self, stream: int, streams: int) -> list[ShardPosition]:
        return [ShardPosition(visit_number) for visit_number in range(stream, len(self), streams)]

    def walk(self, left: Sequence[ShardPosition], streams: int) -> Iterator[ShardPosition]:
        return (place for place in left if place.offset != DONE)


class Rounds:
    """Passes without end: after the last shard of one order comes the first of the next."""

    def __init__(self, groups: NDArray[np.int64], weights: NDArray[np.float64], seed: int) -> None:
        self.groups, self.weights, self.seed = groups, weights, seed
        self.passes: dict[int, OnePass] = {}
        self.length = len(self._pass(0))

    def _pass(self, number: int) -> OnePass:
        if number not in self.passes:
            if len(self.passes) > _ROUNDS_KEPT:
                self.passes.clear()
            self.passes[number] = OnePass(self.groups, self.weights, number, self.seed, shuffle=True)
        return self.passes[number]

    def __getitem__(self, visit_number: int) -> ShardVisit:
        return self._pass(visit_number // self.length)[visit_number % self.length]

    def share(self, stream: int, streams: int) -> list[ShardPosition]:
        return [ShardPosition(stream)]

    def walk(self, left: Sequence[ShardPosition], streams: int) -> Iterator[ShardPosition]:
        yield from (place for place in left if place.offset != DONE)
        visit_number = left[-1].visit_number
        while True:
            visit_number += streams
            yield ShardPosition(visit_number)


def stream_count(parallel_shards: int, processes: int, workers: int) -> int:
    """Return the streams of all processes, rounded up so that every worker of every process has equally many."""
    share = processes * max(1, workers)
    return -(-parallel_shards // share) * share


def advance(left: list[ShardPosition], place: ShardPosition) -> None:
    """Record in a stream's share how far it has been read."""
    while left and left[0].visit_number != place.visit_number:
        left.pop(0)
    left[:1] = [place]


def redistribute(left: Iterable[Sequence[ShardPosition]], streams: int) -> list[list[ShardPosition]]:
    """Distribute the rest of a pass to another number of streams."""
    places = sorted(place for share in left for place in share if place.offset != DONE)
    return [places[stream::streams] for stream in range(streams)]
