"""Batches from shards that are read front to back: each shard is opened once per epoch, by one worker of one process.

Workers read ahead and return items one by one, each with the position that its stream has reached. A position counts
as reached when the batch with that item is returned, so a checkpoint records what was used, not what was read ahead.
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
from stable_audio_tools.data.loader import Batch, Item, Position, outlive_signals, unchanged
from stable_audio_tools.data.shard_plan import (
    DONE,
    OnePass,
    Rounds,
    ShardOrder,
    ShardPosition,
    ShardVisit,
    advance,
    redistribute,
    stream_count,
)
from stable_audio_tools.data.tar_stream import TarSample

logger = logging.getLogger(__name__)

_FEWEST_TO_JUDGE = 50  # items before the fraction of bad ones is judged


class ShardSource(Protocol):
    """Shards that can be read from any byte at which a sample begins."""

    groups: NDArray[np.int64]  # which entry of `datasets` each shard belongs to
    weights: NDArray[np.float64]
    counts: NDArray[np.int64] | None  # samples in each shard, if known
    known_faults: list[Fault]

    def samples(self, shard: int, offset: int) -> Iterator[TarSample]:
        """Yield samples from a byte offset; raise AudioError if the shard breaks off."""

    def load(self, shard: int, sample: TarSample, visit_number: ShardVisit) -> Item | None:
        """Decode a sample; return None if a path list excludes it, raise BadItem or AudioError if it is bad."""

    def path(self, shard: int, sample: TarSample | None = None) -> str:
        """Return the path of a shard, or of a sample in it, for messages."""

    def met(self, shard: int, sample_name: str) -> None:
        """Record a sample that a worker process has looked at."""

    def end_pass(self) -> None:
        """Report on a pass in which every sample was read."""

    def inventories(self) -> list[Inventory]:
        """Return the shards of each entry of the config, for processes to compare."""


class StreamLoader:
    """An iterable over one epoch at a time; `state_dict` is the position after the batch that was returned last.

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
        resampled: bool = True,  # repeat without end in training; an epoch is `epoch_steps` batches
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
        self._left: dict[int, list[ShardPosition]] = {}  # of the streams of this process
        self._turn = 0  # the stream whose item comes next
        self._before: Position | None = None  # state before the batch that was returned last
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
        """Return the number of shards that all processes read at once."""
        useful = min(self.parallel_shards, len(self.source.groups))
        return stream_count(useful, self.world_size, self.num_workers)

    def __len__(self) -> int:
        """Return the maximum batches of an epoch; raise TypeError if the number of samples is unknown."""
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
            if batch is None:  # another process still has items, and all must take the same number of steps
                batch, repeats = self._repeat(repeats)
            self._batches += 1
            if self._has_length and self._batches == len(self):  # Lightning fetches no further batch
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

        Lightning fetches one batch ahead from a loader without length; then it is the position before that batch.
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
            logger.warning("the shards differ from those of the checkpoint; their order restarts")
            self.epoch = state["epoch"]
            return
        self.seed, self.epoch, self._batches = state["seed"], state["epoch"], state["batches"]
        left = {int(stream): [ShardPosition(*place) for place in places] for stream, places in state["left"].items()}
        if state["streams"] != self.streams or len(left) != self.streams:
            logger.warning("resuming with another number of processes or workers: the order of the shards changes")
            left = self._redistributed(left)
        self._left = {stream: left[stream] for stream in self._own_streams()}
        self._turn = state["turn"] if state["turn"] in self._left else self.rank
        self._events, self._before = None, None
        self._waiting.clear()
        self._resuming = self.epoch >= 0

    def rewind(self) -> None:
        """Start again at the first epoch."""
        self.epoch, self._batches, self._resuming = -1, 0, False
        self._left, self._events, self._before = {}, None, None
        self._waiting.clear()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_events": None, "_waiting": deque()}

    # -------------------------------------------------------------- epochs

    def _begin(self) -> None:
        if not self._resuming:
            self.epoch, self._batches = self.epoch + 1, 0
        if not self._resuming and not (self.resampled and self._left):
            order, self._turn, self._events = self._new_order(), self.rank, None
            self._left = {stream: order.share(stream, self.streams) for stream in self._own_streams()}
            self._waiting.clear()
        if self._events is None:
            self._waiting.clear()
            self._events = self._read(self._left, self._turn)
        self._resuming, self._met = False, 0
        self.report.begin_epoch()

    def _sum_up(self) -> None:
        """Log once per epoch the items that were left out."""
        if self._told == self.epoch:
            return
        self._told = self.epoch
        self.report.log_epoch(self.epoch)
        if self.epoch_steps is None and self.world_size == 1:
            self.source.end_pass()

    def _new_order(self) -> ShardOrder:
        groups, weights = self.source.groups, self.source.weights
        if self.resampled:
            return Rounds(groups, weights, self.seed)
        order = OnePass(groups, weights, self.epoch, self.seed, self.shuffle)
        if len(order) < self.world_size:
            raise ConfigError(
                f"{len(order)} shards for {self.world_size} processes: each needs one at least; split the shards, or "
                "set resampled_shards to true"
            )
        return order

    def _own_streams(self) -> range:
        return range(self.rank, self.streams, self.world_size)

    def _redistributed(self, left: dict[int, list[ShardPosition]]) -> dict[int, list[ShardPosition]]:
        if self.resampled:
            first = max(place.visit_number for share in left.values() for place in share) + 1
            return {stream: [ShardPosition(first + stream)] for stream in range(self.streams)}
        return dict(enumerate(redistribute(left.values(), self.streams)))

    @property
    def _has_length(self) -> bool:
        return self.epoch_steps is not None or self.source.counts is not None

    def _snapshot(self) -> Position:
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
        """Return the next batch of this process, or None at the end of its share."""
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
        """Return a batch from the start of this process's own share."""
        batch = next(repeats, None)
        if batch is None:
            repeats = self._repeated()
            batch = next(repeats, None)
        if batch is None:
            raise AudioError(f"epoch {self.epoch}: process {self.rank} has no usable item ({self.report.counts()})")
        return batch, repeats

    def _repeated(self) -> Iterator[Batch]:
        order = self._new_order()
        left = {stream: order.share(stream, self.streams) for stream in self._own_streams()}
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
        """Return whether any process has a batch that was not returned yet."""
        if self._world_size is not None or self.world_size == 1 or not _is_distributed():
            return fresh
        self._group = self._group or torch.distributed.new_group(backend="gloo")
        flag = torch.tensor([int(fresh)])
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def _read(self, left: dict[int, list[ShardPosition]], turn: int) -> Iterator["_Event | None"]:
        own = self._own_streams()
        first = own.index(turn)
        order = [*own[first:], *own[:first]]
        reader = _Streams(
            self.source, self._new_order(), [(stream, list(left[stream])) for stream in order], self.streams
        )
        ahead = max(2, math.ceil(2 * self.batch_size / max(1, self.num_workers)))
        return iter(
            DataLoader(
                reader,
                batch_size=None,
                collate_fn=unchanged,  # without batching it returns single items
                num_workers=self.num_workers,
                worker_init_fn=outlive_signals,
                prefetch_factor=ahead if self.num_workers else None,
                generator=torch.Generator(),  # so that an epoch draws nothing from the training's random numbers
            )
        )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _collate(items: Sequence[Item]) -> Batch:
    """Stack items; each item's metadata also refers to its part of the batch, which conditioners read."""
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
    """A step of a stream: an item, a fault, or (neither) a sample that a path list excludes."""

    stream: int
    place: ShardPosition
    item: Item | None = None
    fault: Fault | None = None
    error: UserError | None = None
    shard: int = -1
    name: str = ""  # of the sample in its shard


_END = _Event(-1, ShardPosition(-1))


class _Streams(IterableDataset[Any]):
    """The streams of one process in the order of their turns; worker `w` of `n` reads every n-th from the w-th."""

    def __init__(
        self, source: ShardSource, order: ShardOrder, streams: Sequence[tuple[int, list[ShardPosition]]], total: int
    ) -> None:
        self.source, self.order, self.streams, self.total = source, order, streams, total

    def __iter__(self) -> Iterator[_Event | None]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        running = [self._stream(stream, left) for stream, left in self.streams[first::step]]
        while running:
            # A finished stream keeps an empty turn, so that turns match those of other workers.
            ended = 0
            for stream in running:
                event = next(stream, None)
                ended += event is None
                yield event
            if ended == len(running):
                return

    def _stream(self, stream: int, left: list[ShardPosition]) -> Iterator[_Event]:
        for place in self.order.walk(left, self.total):
            try:
                yield from self._read_visit(stream, place)
            except UserError as error:  # raised again in the main process, without the worker's traceback
                yield _Event(stream, place, error=error)
                return

    def _read_visit(self, stream: int, place: ShardPosition) -> Iterator[_Event]:
        visit_number = self.order[place.visit_number]
        samples = self.source.samples(visit_number.shard, place.offset)
        while True:
            try:
                sample = next(samples, None)
            except AudioError as error:
                path = self.source.path(visit_number.shard)
                fault = Fault(path, "unreadable", str(error).removeprefix(f"{path}: "))
                yield _Event(stream, ShardPosition(place.visit_number, DONE), fault=fault)
                return
            if sample is None:
                return
            yield self._sample(stream, ShardPosition(place.visit_number, sample.end), visit_number, sample)

    def _sample(self, stream: int, place: ShardPosition, visit_number: ShardVisit, sample: TarSample) -> _Event:
        path = self.source.path(visit_number.shard, sample)
        name = path[len(self.source.path(visit_number.shard)) + 1 :]
        event = _Event(stream, place, shard=visit_number.shard, name=name)
        try:
            return event._replace(item=self.source.load(visit_number.shard, sample, visit_number))
        except BadItem as error:
            return event._replace(fault=error.at(path))
        except AudioError as error:
            return event._replace(fault=Fault(path, "unreadable", str(error).removeprefix(f"{path}: ")))
