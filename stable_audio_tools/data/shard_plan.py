"""Which shard is read when: by how many streams at once, in which process, and from where after an interruption.

An epoch deals its shards to a fixed number of streams, like cards. Items come from the streams in turn, one from each,
which also mixes neighbours of one shard with those of others. Processes and workers share the streams out among
themselves, so their number does not change the order as long as it divides the number of streams.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.data.draws import make_order

_ROUNDS_KEPT = 8  # streams are in different rounds where shards differ in size

DONE = -1  # as an offset: this card is read


class Place(NamedTuple):
    """A card of the deal, and the byte of its shard from which it is still to be read."""

    card: int
    offset: int = 0


class Card(NamedTuple):
    """One reading of one shard."""

    shard: int
    epoch: int
    visit: int


class Deal(Protocol):
    """The order of shards."""

    def __getitem__(self, card: int) -> Card: ...

    def share(self, stream: int, streams: int) -> list[Place]:
        """What one of so many streams begins with."""

    def walk(self, left: Sequence[Place], streams: int) -> Iterator[Place]:
        """What a stream reads when so much of its share is left."""


class OnePass:
    """Every shard once (as often as the weight of its entry says), in an order that depends on seed and epoch."""

    def __init__(
        self, groups: NDArray[np.int64], weights: NDArray[np.float64], epoch: int, seed: int, shuffle: bool
    ) -> None:
        self.epoch = epoch
        self.order = make_order(groups, weights, epoch, seed, shuffle)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, card: int) -> Card:
        return Card(int(self.order.items[card]), self.epoch, int(self.order.visits[card]))

    def share(self, stream: int, streams: int) -> list[Place]:
        return [Place(card) for card in range(stream, len(self), streams)]

    def walk(self, left: Sequence[Place], streams: int) -> Iterator[Place]:
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

    def __getitem__(self, card: int) -> Card:
        return self._pass(card // self.length)[card % self.length]

    def share(self, stream: int, streams: int) -> list[Place]:
        return [Place(stream)]

    def walk(self, left: Sequence[Place], streams: int) -> Iterator[Place]:
        yield from (place for place in left if place.offset != DONE)
        card = left[-1].card
        while True:
            card += streams
            yield Place(card)


def stream_count(parallel_shards: int, processes: int, workers: int) -> int:
    """Streams of all processes: as asked, but rounded up so that every worker of every process has equally many."""
    share = processes * max(1, workers)
    return -(-parallel_shards // share) * share


def advance(left: list[Place], place: Place) -> None:
    """Note in a stream's share how far it is read."""
    while left and left[0].card != place.card:
        left.pop(0)
    left[:1] = [place]


def redeal(left: Iterable[Sequence[Place]], streams: int) -> list[list[Place]]:
    """What is left of a pass, for another number of streams."""
    places = sorted(place for share in left for place in share if place.offset != DONE)
    return [places[stream::streams] for stream in range(streams)]
