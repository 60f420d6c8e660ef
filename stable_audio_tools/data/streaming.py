"""Batches from shards that are read front to back: each shard is opened once per epoch, by one worker of one process.

Workers read ahead and give items one by one, each with the place that its stream has reached. A place counts as
reached when the batch with that item is given, so a checkpoint holds what was used and not what was read ahead.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stable_audio_tools.core import ranks
from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.data.draws import make_order, order_length
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy, FaultReport
from stable_audio_tools.data.inventory import Inventory
from stable_audio_tools.data.loader import Batch, Item, Position, outlive_signals
from stable_audio_tools.data.shard_plan import (
    DONE,
    Card,
    Deal,
    OnePass,
    Place,
    Rounds,
    advance,
    redeal,
    stream_count,
)
from stable_audio_tools.data.tar_stream import TarSample

logger = logging.getLogger(__name__)

_FEWEST_TO_JUDGE = 50  # items, before which a fraction of bad ones means little


class ShardSource(Protocol):
    """Shards that can be read from any byte where a sample begins."""

    groups: NDArray[np.int64]  # which entry of `datasets` each shard belongs to
    weights: NDArray[np.float64]
    counts: NDArray[np.int64] | None  # samples in each shard, where that is known
    known_faults: list[Fault]

    def samples(self, shard: int, offset: int) -> Iterator[TarSample]:
        """Samples from a byte on. Raises AudioError where the shard breaks off."""

    def load(self, shard: int, sample: TarSample, card: Card) -> Item | None:
        """Decode a sample; None when a path list leaves it out. Raises BadItem or AudioError."""

    def path(self, shard: int, sample: TarSample | None = None) -> str:
        """The shard, or a sample in it, for messages."""

    def met(self, shard: int, sample_name: str) -> None:
        """Note a sample that a worker process has looked at."""

    def end_pass(self) -> None:
        """Every sample was met."""

    def inventories(self) -> list[Inventory]:
        """Return the shards of each entry of the config, for processes to compare."""


class StreamLoader:
    """Iterates over one epoch at a time; `state_dict` is the place after the batch that was given last.

    Call `state_dict` in every process of a distributed run, or in none.
    """

    def __init__(
        self,
        source: ShardSource,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        policy: FaultPolicy = FaultPolicy(),  # noqa: B008 (immutable)
        resampled: bool = True,  # in training go on without end, an epoch being `epoch_steps` batches
        epoch_steps: int | None = None,
        parallel_shards: int = 24,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.source, self.batch_size, self.num_workers, self.seed = source, batch_size, num_workers, seed
        self.shuffle, self.drop_last, self.resampled = shuffle, drop_last, resampled and shuffle
        self.epoch_steps = epoch_steps if self.resampled else None
        self.parallel_shards = parallel_shards
        self._rank, self._world_size = rank, world_size
        self.epoch, self._batches, self._resuming = -1, 0, False
        self._left: dict[int, list[Place]] = {}  # of the streams of this process
        self._turn = 0  # the stream whose item comes next
        self._before: dict[str, Any] | None = None  # state before the batch that was given last
        self._events: Iterator[_Event | None] | None = None
        self._waiting: deque[_Event] = deque()
        self._met, self._told = 0, -1
        self._group: Any = None  # of processes, for agreeing on the end of an epoch
        self.report = FaultReport(policy, source.known_faults)
        if order_length(source.groups, source.weights) == 0:
            raise ConfigError("weight: the weights of the entries leave no shard to read")

    def inventories(self) -> list[Inventory]:
        """Return the shards that this process sees."""
        return self.source.inventories()

    @property
    def rank(self) -> int:
        return ranks.rank() if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        return ranks.world_size() if self._world_size is None else self._world_size

    @property
    def streams(self) -> int:
        """How many shards all processes read at once."""
        useful = min(self.parallel_shards, len(self.source.groups))
        return stream_count(useful, self.world_size, self.num_workers)

    def __len__(self) -> int:
        """Most batches of an epoch; TypeError when nobody knows how many samples the shards hold."""
        if self.epoch_steps is not None:
            return self.epoch_steps
        if self.source.counts is None:
            raise TypeError("the number of samples in these shards is not known")
        order = make_order(self.source.groups, self.source.weights, 0, self.seed, shuffle=False)
        largest = np.sort(self.source.counts[order.items])[::-1][: -(-len(order) // self.world_size)]
        samples = int(largest.sum())
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self._begin()
        fresh, given = True, self._batches
        repeats: Iterator[Batch] = iter(())
        limit = self.epoch_steps
        while limit is None or self._batches < limit:
            batch = self._take() if fresh else None
            fresh = batch is not None
            if not (self._somebody(fresh) if limit is None else fresh):
                break
            if batch is None:  # another process still has items, and all must make equally many steps
                batch, repeats = self._repeat(repeats)
            self._batches += 1
            if self._has_length and self._batches == len(self):  # Lightning does not ask for more
                self._sum_up()
            yield batch
        if self._batches == 0:
            raise AudioError(f"epoch {self.epoch}: not one batch of usable items ({self.report.counts()})")
        self._before = None
        self._sum_up()
        if self._batches == given:  # the position was the end of an epoch
            yield from self

    def state_dict(self) -> Position:
        """The position, as plain values.

        Lightning fetches one batch ahead from a loader without length; there it is the place before that batch.
        """
        state = self._snapshot()
        if not self._has_length and self._before is not None:
            state = self._before
        states = [state]
        if self._world_size is None and self.world_size > 1 and _is_distributed():
            states = [{} for _ in range(self.world_size)]
            torch.distributed.all_gather_object(states, state)
        left = {stream: places for one in states for stream, places in one["left"].items()}
        return {**state, "left": {str(stream): left[stream] for stream in sorted(left)}}

    def load_state_dict(self, state: Position) -> None:
        """Continue from a position; the next iteration gives the batches that would have followed."""
        if state["shards"] != len(self.source.groups) or state["resampled"] != self.resampled:
            logger.warning("the shards are not those of the checkpoint; their order starts anew")
            self.epoch = state["epoch"]
            return
        self.seed, self.epoch, self._batches = state["seed"], state["epoch"], state["batches"]
        left = {int(stream): [Place(*place) for place in places] for stream, places in state["left"].items()}
        if state["streams"] != self.streams or len(left) != self.streams:
            logger.warning("resuming with another number of processes or workers: the order of the shards changes")
            left = self._dealt_anew(left)
        self._left = {stream: left[stream] for stream in self._own_streams()}
        self._turn = state["turn"] if state["turn"] in self._left else self.rank
        self._events, self._before = None, None
        self._waiting.clear()
        self._resuming = self.epoch >= 0

    def rewind(self) -> None:
        """The next iteration is the first epoch again."""
        self.epoch, self._batches, self._resuming = -1, 0, False
        self._left, self._events, self._before = {}, None, None
        self._waiting.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_events": None, "_waiting": deque()}

    # -------------------------------------------------------------- epochs

    def _begin(self) -> None:
        if not self._resuming:
            self.epoch, self._batches = self.epoch + 1, 0
        if not self._resuming and not (self.resampled and self._left):
            deal, self._turn, self._events = self._deal(), self.rank, None
            self._left = {stream: deal.share(stream, self.streams) for stream in self._own_streams()}
            self._waiting.clear()
        if self._events is None:
            self._waiting.clear()
            self._events = self._read(self._left, self._turn)
        self._resuming, self._met = False, 0
        self.report.begin_epoch()

    def _sum_up(self) -> None:
        """Once for each epoch, say what was left out."""
        if self._told == self.epoch:
            return
        self._told = self.epoch
        self.report.log_epoch(self.epoch)
        if self.epoch_steps is None and self.world_size == 1:
            self.source.end_pass()

    def _deal(self) -> Deal:
        groups, weights = self.source.groups, self.source.weights
        if self.resampled:
            return Rounds(groups, weights, self.seed)
        deal = OnePass(groups, weights, self.epoch, self.seed, self.shuffle)
        if len(deal) < self.world_size:
            raise ConfigError(
                f"{len(deal)} shards for {self.world_size} processes: each needs one at least; split the shards, or "
                "set resampled_shards to true"
            )
        return deal

    def _own_streams(self) -> range:
        return range(self.rank, self.streams, self.world_size)

    def _dealt_anew(self, left: dict[int, list[Place]]) -> dict[int, list[Place]]:
        if self.resampled:
            first = max(place.card for share in left.values() for place in share) + 1
            return {stream: [Place(first + stream)] for stream in range(self.streams)}
        return dict(enumerate(redeal(left.values(), self.streams)))

    @property
    def _has_length(self) -> bool:
        return self.epoch_steps is not None or self.source.counts is not None

    def _snapshot(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batches": self._batches,
            "left": {stream: [tuple(place) for place in places] for stream, places in self._left.items()},
            "turn": self._turn,
            "streams": self.streams,
            "shards": len(self.source.groups),
            "resampled": self.resampled,
            "seed": self.seed,
        }

    # -------------------------------------------------------------- batches

    def _take(self) -> Batch | None:
        """The next batch of this process, or None at the end of its share."""
        assert self._events is not None
        have = sum(event.item is not None for event in self._waiting)
        while have < self.batch_size:
            event = next(self._events, _END)
            if event is _END:
                break
            if event is not None:
                self._note(event)
                self._waiting.append(event)
                have += event.item is not None
        if have < self.batch_size and (self.drop_last or have == 0):
            return None
        self._before = None if self._has_length else self._snapshot()
        items: list[Item] = []
        while len(items) < min(have, self.batch_size):
            event = self._waiting.popleft()
            advance(self._left[event.stream], event.place)
            self._turn = self._after(event.stream)
            if event.item is not None:
                items.append(event.item)
        return _collate(items)

    def _after(self, stream: int) -> int:
        following = stream + self.world_size
        return following if following < self.streams else self.rank

    def _note(self, event: "_Event") -> None:
        if event.error is not None:
            raise event.error
        self._met += 1
        if self.num_workers and event.name:
            self.source.met(event.shard, event.name)
        if event.fault is not None:
            counts = self.source.counts
            if counts is not None and not self.resampled:
                self.report.add(event.fault, int(counts.sum()), self.world_size)
            else:
                self.report.add(event.fault, max(self._met, _FEWEST_TO_JUDGE))

    def _repeat(self, repeats: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
        """A batch from the beginning of this process's own share."""
        batch = next(repeats, None)
        if batch is None:
            repeats = self._repeated()
            batch = next(repeats, None)
        if batch is None:
            raise AudioError(f"epoch {self.epoch}: process {self.rank} has no usable item ({self.report.counts()})")
        return batch, repeats

    def _repeated(self) -> Iterator[Batch]:
        deal = self._deal()
        left = {stream: deal.share(stream, self.streams) for stream in self._own_streams()}
        items: list[Item] = []
        for event in self._read(left, self.rank):
            if event is not None and event.item is not None:
                items.append(event.item)
                if len(items) == self.batch_size:
                    yield _collate(items)
                    items = []
        if items:
            yield _collate((items * self.batch_size)[: self.batch_size])

    def _somebody(self, fresh: bool) -> bool:
        """Has any process a batch that was not given yet?"""
        if self._world_size is not None or self.world_size == 1 or not _is_distributed():
            return fresh
        self._group = self._group or torch.distributed.new_group(backend="gloo")
        flag = torch.tensor([int(fresh)])
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def _read(self, left: dict[int, list[Place]], turn: int) -> Iterator["_Event | None"]:
        own = self._own_streams()
        first = own.index(turn)
        order = [*own[first:], *own[:first]]
        reader = _Streams(self.source, self._deal(), [(stream, list(left[stream])) for stream in order], self.streams)
        ahead = max(2, math.ceil(2 * self.batch_size / max(1, self.num_workers)))
        return iter(
            DataLoader(
                reader,
                batch_size=None,
                collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batches it is given single items
                num_workers=self.num_workers,
                worker_init_fn=outlive_signals,
                prefetch_factor=ahead if self.num_workers else None,
                generator=torch.Generator(),  # else each epoch would draw from the training's random numbers
            )
        )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _collate(items: Sequence[Item]) -> Batch:
    """Stack, and show each item's own part of the batch in its metadata, where conditioners look for it."""
    shapes = {tuple(item.audio.shape) for item in items}
    if len(shapes) > 1:
        raise ConfigError(
            f"items of one batch differ in shape: {', '.join(map(str, sorted(shapes)))}; give latents one length with "
            "latent_crop_length, or use a batch size of 1"
        )
    audio: Tensor = torch.stack([item.audio for item in items])
    if torch.cuda.is_available():
        audio = audio.pin_memory()
    return audio, tuple({**item.info, "audio": clip} for item, clip in zip(items, audio))


# ------------------------------------------------------------------ in the workers


class _Event(NamedTuple):
    """What a stream met: an item, a fault, or (neither) a sample that a path list leaves out."""

    stream: int
    place: Place
    item: Item | None = None
    fault: Fault | None = None
    error: UserError | None = None
    shard: int = -1
    name: str = ""  # of the sample in its shard


_END = _Event(-1, Place(-1))


def _as_it_is(event: _Event | None) -> _Event | None:
    return event


class _Streams(IterableDataset[Any]):
    """The streams of one process in the order of their turns; worker `w` of `n` reads every n-th from the w-th on."""

    def __init__(self, source: ShardSource, deal: Deal, streams: Sequence[tuple[int, list[Place]]], total: int) -> None:
        self.source, self.deal, self.streams, self.total = source, deal, streams, total

    def __iter__(self) -> Iterator[_Event | None]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        running = [self._stream(stream, left) for stream, left in self.streams[first::step]]
        while running:
            # A stream that has ended keeps its turn, empty, so that turns stay in step with those of other workers.
            ended = 0
            for stream in running:
                event = next(stream, None)
                ended += event is None
                yield event
            if ended == len(running):
                return

    def _stream(self, stream: int, left: list[Place]) -> Iterator[_Event]:
        for place in self.deal.walk(left, self.total):
            try:
                yield from self._card(stream, place)
            except UserError as error:  # raised again where the user sees it, without the worker's traceback
                yield _Event(stream, place, error=error)
                return

    def _card(self, stream: int, place: Place) -> Iterator[_Event]:
        card = self.deal[place.card]
        samples = self.source.samples(card.shard, place.offset)
        while True:
            try:
                sample = next(samples, None)
            except AudioError as error:
                path = self.source.path(card.shard)
                fault = Fault(path, "unreadable", str(error).removeprefix(f"{path}: "))
                yield _Event(stream, Place(place.card, DONE), fault=fault)
                return
            if sample is None:
                return
            yield self._sample(stream, Place(place.card, sample.end), card, sample)

    def _sample(self, stream: int, place: Place, card: Card, sample: TarSample) -> _Event:
        path = self.source.path(card.shard, sample)
        name = path[len(self.source.path(card.shard)) + 1 :]
        event = _Event(stream, place, shard=card.shard, name=name)
        try:
            return event._replace(item=self.source.load(card.shard, sample, card))
        except BadItem as error:
            return event._replace(fault=error.at(path))
        except AudioError as error:
            return event._replace(fault=Fault(path, "unreadable", str(error).removeprefix(f"{path}: ")))
