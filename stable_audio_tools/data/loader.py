"""Batches in an order that depends only on seed and epoch, with a position that a checkpoint can store.

Every process takes each `world_size`-th place of one common order, so the batches of two processes together are the
batch of one. Workers return the items that could be read; the loader fills the gaps of bad items with the items that
follow, so each good item occurs exactly once in an epoch and every batch is full. All processes return the same number
of batches: one that runs out of items repeats the start of its order.
"""

import itertools
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stable_audio_tools.core import ranks
from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.data.custom_metadata import ItemInfo
from stable_audio_tools.data.draws import Draw, Order, make_order, order_length
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy, FaultReport
from stable_audio_tools.data.inventory import Inventory

logger = logging.getLogger(__name__)

Metadata = tuple[ItemInfo, ...]
Batch = tuple[Tensor, Metadata]  # (b, c, n), and the metadata of each item
Position = dict[str, Any]  # of a loader in its data, as a checkpoint holds it


class Item(NamedTuple):
    """One clip, ready for a batch."""

    audio: Tensor  # (c, n) samples, or (d, t) latents
    info: ItemInfo


class ItemSource(Protocol):
    """Items that can be read one by one, in any process."""

    groups: NDArray[np.int64]  # which entry of `datasets` each item belongs to
    weights: NDArray[np.float64]  # how often an epoch visits the items of each entry
    known_faults: list[Fault]  # files left out from the start

    def load(self, draw: Draw) -> Item:
        """Read one item; raise BadItem or AudioError if it cannot be used."""

    def path(self, item: int) -> str:
        """Return the file of an item, for messages."""

    def inventories(self) -> list[Inventory]:
        """Return the items of each entry of the config, for processes to compare."""


class BatchLoader(Protocol):
    """The batches of a dataset, an epoch per iteration."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> Position:
        """Return the position after the batch that was given last."""

    def load_state_dict(self, state: Position) -> None:
        """Continue after that position."""

    def rewind(self) -> None:
        """Start the next iteration with the first epoch."""

    def inventories(self) -> list[Inventory]:
        """Return the items that this process sees, for processes to compare."""


class SamePass:
    """Held-out data: each pass returns the same crops, so that measurements are comparable."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.rewind()
        return iter(self.loader)


class UnknownLength:
    """A loader of one process, for a trainer that fetches one batch ahead to detect the end of an epoch.

    An epoch is shorter than the loader's length if items are bad. `state_dict` is the position before the batch that
    was returned last: the trainer has fetched that one, but not trained on it.
    """

    def __init__(self, loader: "Loader") -> None:
        self.loader = loader
        self._before: Position | None = None

    @property
    def most_batches(self) -> int:
        """The length of an epoch in which every item can be read."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self._before = None
        batches = iter(self.loader)
        while True:
            before = self.loader.state_dict()
            batch = next(batches, None)
            if batch is None:
                self._before = None
                return
            self._before = before
            yield batch

    def state_dict(self) -> Position:
        return self._before or self.loader.state_dict()

    def load_state_dict(self, state: Position) -> None:
        self.loader.load_state_dict(state)


class Loader:
    """An iterable over one epoch at a time; `state_dict` is the position after the batch that was returned last.

    Call `state_dict` in every process of a distributed run, or in none.
    """

    def __init__(
        self,
        dataset: ItemSource,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        policy: FaultPolicy = FaultPolicy(),  # noqa: B008 (immutable)
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: str | None = None,
    ) -> None:
        self.dataset, self.batch_size, self.num_workers, self.seed = dataset, batch_size, num_workers, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self._rank, self._world_size, self._context = rank, world_size, multiprocessing_context
        self.epoch, self._batches, self._position, self._resuming = -1, 0, 0, False
        self._logged = -1  # the last epoch that was reported
        self._schedule = _Schedule()
        self._workers: DataLoader[Any] | None = None
        self._items = order_length(dataset.groups, dataset.weights)
        self.report = FaultReport(policy, dataset.known_faults)
        self.report.stop_if_too_many(self._items)
        if self._items == 0:
            raise AudioError(f"no usable item is left: {self.report.counts()}")
        if len(self) == 0:
            raise ConfigError(
                f"batch_size: {self._items} usable items do not fill a batch of {batch_size} for each of "
                f"{self.world_size} processes; lower batch_size to {max(1, self._items // self.world_size)}, "
                "or set drop_last to false in the dataset config"
            )

    def inventories(self) -> list[Inventory]:
        """Return the items that this process sees."""
        return self.dataset.inventories()

    @property
    def rank(self) -> int:
        """Return the rank; looked up late, because a launcher may start other processes after the loader is built."""
        return ranks.rank() if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        return ranks.world_size() if self._world_size is None else self._world_size

    def __len__(self) -> int:
        """Return the batches per epoch of this process: exact with several processes, else assuming no bad items."""
        if self.drop_last:
            return self._items // (self.batch_size * self.world_size)
        return -(-self._items // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        self._begin()
        order = make_order(self.dataset.groups, self.dataset.weights, self.epoch, self.seed, self.shuffle)
        places = range(self.rank, len(order), self.world_size)
        rebatch, limit, before = _Rebatch(self.batch_size), len(self), self._batches
        for lap in itertools.count():
            start, stop = max(self._position, lap * len(places)), (lap + 1) * len(places)
            received = rebatch.received
            for chunk in self._read(order, places, start, stop):
                self._note(chunk)
                rebatch.add(chunk)
                while rebatch.full and self._batches < limit:
                    yield self._give(rebatch)
                if lap and not self._is_short_of_batches(rebatch):
                    break
            nothing = rebatch.received == received and start == lap * len(places)
            if self.world_size == 1 or nothing or not self._is_short_of_batches(rebatch):
                break
        if rebatch.count and self._batches < limit and not self.drop_last:
            yield self._give(rebatch)
        if self._batches == 0:
            raise AudioError(f"epoch {self.epoch}: not one batch of usable items ({self.report.counts()})")
        finished, self._batches = self._batches == before, limit
        self._log_epoch()
        if finished:  # the position was the end of an epoch shortened by bad items
            yield from self

    def state_dict(self) -> Position:
        """The position, as plain values."""
        places = [self._position] * self.world_size
        if self._world_size is None and self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.all_gather_object(places, self._position)
        return {
            "epoch": self.epoch,
            "batches": self._batches,
            "positions": places,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "items": self._items,
        }

    def load_state_dict(self, state: Position) -> None:
        """Continue from a position; the next iteration gives the batches that would have followed."""
        if state["items"] != self._items:
            logger.warning(
                "the dataset had %d items when the checkpoint was written and has %d now; the order restarts",
                state["items"],
                self._items,
            )
            self.epoch, self._resuming = max(self.epoch, state["epoch"]), False
            return
        self.seed, self.epoch, self._batches = state["seed"], state["epoch"], state["batches"]
        places = state["positions"]
        if (len(places), state["batch_size"]) == (self.world_size, self.batch_size):
            self._position = places[self.rank]
        else:
            self._position = sum(places) // self.world_size
            self._batches = self._position // self.batch_size
            logger.warning(
                "resuming with another batch size or number of processes: the order continues at the same place"
            )
        self._resuming = self.epoch >= 0 and self._batches < len(self)

    def rewind(self) -> None:
        """Start again at the first epoch."""
        self.epoch, self._batches, self._position, self._resuming = -1, 0, 0, False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_workers": None}

    # -------------------------------------------------------------- one epoch

    def _begin(self) -> None:
        if not self._resuming:
            self.epoch, self._batches, self._position = self.epoch + 1, 0, 0
        self._resuming = False
        self.report.begin_epoch()

    def _note(self, chunk: "_Chunk") -> None:
        if chunk.error is not None:
            raise chunk.error
        for fault in chunk.faults:
            self.report.add(fault, self._items, self.world_size)

    def _give(self, rebatch: "_Rebatch") -> Batch:
        audio, info, last = rebatch.take()
        self._batches, self._position = self._batches + 1, last + 1
        if self._batches == len(self):  # a caller that knows the length fetches no further batch
            self._log_epoch()
        return audio, info

    def _log_epoch(self) -> None:
        """Log once per epoch the items that were left out."""
        if self._logged != self.epoch:
            self._logged = self.epoch
            self.report.log_epoch(self.epoch)

    def _is_short_of_batches(self, rebatch: "_Rebatch") -> bool:
        """Return whether this process would return fewer batches than the others."""
        shorter = rebatch.count > 0 and not self.drop_last
        return self._batches + shorter < len(self)

    def _read(self, order: Order, places: Sequence[int], start: int, stop: int) -> Iterator["_Chunk"]:
        """Yield the chunks that workers read for positions [start, stop) of this process's places."""
        self._schedule.chunks = _draws(order, places, start, stop, self.batch_size, self.epoch, self.seed)
        if self._workers is None:
            self._workers = self._start_workers()
        yield from self._workers

    def _start_workers(self) -> DataLoader[Any]:
        return DataLoader(
            _ChunkReader(self.dataset),
            batch_sampler=self._schedule,
            collate_fn=unchanged,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_signals,
            multiprocessing_context=self._context if self.num_workers else None,
            # Its own generator: starting an epoch draws a seed, and must leave the noise of a resumed run as it was.
            generator=torch.Generator(),
        )


def _draws(
    order: Order, places: Sequence[int], start: int, stop: int, size: int, epoch: int, seed: int
) -> Iterator[list[Draw]]:
    """Yield lists of at most `size` draws; no reference to the loader: torch cannot end workers in a cycle."""
    for first in range(start, stop, size):
        positions = range(first, min(first + size, stop))
        chosen = [places[position % len(places)] for position in positions]
        yield [
            Draw(int(order.items[place]), epoch, int(order.visits[place]), seed, position)
            for position, place in zip(positions, chosen)
        ]


class _Schedule:
    """The lists of draws that the workers read next."""

    def __init__(self) -> None:
        self.chunks: Iterator[list[Draw]] = iter(())

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.chunks

    def __getstate__(self) -> dict[str, object]:
        return {"chunks": iter(())}


# ------------------------------------------------------------------ in the workers


class _Chunk(NamedTuple):
    """The good items of one list of draws, stacked; padding masks are sent as bits."""

    audio: Tensor | None  # (k, c, n)
    masks: NDArray[np.uint8] | None  # (k, ceil(n / 8))
    frames: int  # n of the masks
    info: list[ItemInfo]
    positions: list[int]
    faults: list[Fault]
    error: UserError | None = None


class _ChunkReader(Dataset[Any]):
    def __init__(self, dataset: ItemSource) -> None:
        self.dataset = dataset

    def __getitems__(self, draws: list[Draw]) -> _Chunk:
        try:
            return _read_chunk(self.dataset, draws)
        except UserError as error:  # raised again in the main process, without the worker's traceback
            return _Chunk(None, None, 0, [], [], [], error)


def unchanged(chunk: object) -> object:
    """Return a chunk as it is: the `collate_fn` of loaders whose datasets collate themselves."""
    return chunk


def _read_chunk(dataset: ItemSource, draws: list[Draw]) -> _Chunk:
    items, positions, faults = [], [], []
    for draw in draws:
        try:
            items.append(dataset.load(draw))
            positions.append(draw.position)
        except BadItem as error:
            faults.append(error.at(dataset.path(draw.item)))
        except AudioError as error:
            path = dataset.path(draw.item)
            faults.append(Fault(path, "unreadable", str(error).removeprefix(f"{path}: ")))
    if not items:
        return _Chunk(None, None, 0, [], [], faults)
    info = [dict(item.info) for item in items]
    audio = _stack([item.audio for item in items])
    masks = [mask for entry in info if isinstance(mask := entry.get("padding_mask"), Tensor)]
    if len(masks) < len(info) or len({mask.shape for mask in masks}) > 1 or masks[0].ndim != 1:
        return _Chunk(audio, None, 0, info, positions, faults)
    bits = np.stack([np.packbits(mask.numpy() != 0) for mask in masks])
    info = [{key: value for key, value in entry.items() if key != "padding_mask"} for entry in info]
    return _Chunk(audio, bits, len(masks[0]), info, positions, faults)


def _stack(tensors: list[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ConfigError(
            f"items of one batch differ in shape: {', '.join(map(str, sorted(shapes)))}; give latents one length with "
            "latent_crop_length, or use a batch size of 1"
        )
    return torch.stack(tensors)


class _Rebatch:
    """Regroups chunks of any size into batches of one size, in order."""

    def __init__(self, size: int) -> None:
        self.size, self.count, self.received = size, 0, 0
        self.waiting: list[_Chunk] = []

    @property
    def full(self) -> bool:
        return self.count >= self.size

    def add(self, chunk: _Chunk) -> None:
        if chunk.audio is None:
            return
        if chunk.masks is not None:
            bits = np.unpackbits(chunk.masks, axis=1, count=chunk.frames)
            for entry, mask in zip(chunk.info, torch.from_numpy(bits).float()):
                entry["padding_mask"] = mask
        self.waiting.append(chunk)
        self.count += len(chunk.info)
        self.received += len(chunk.info)

    def take(self) -> tuple[Tensor, Metadata, int]:
        """Return the next batch, incomplete only if no items remain, and the position of its last item."""
        audio: list[Tensor] = []
        info: list[ItemInfo] = []
        last = -1
        while self.waiting and len(info) < self.size:
            chunk, room = self.waiting.pop(0), self.size - len(info)
            assert chunk.audio is not None
            audio.append(chunk.audio[:room])
            info += chunk.info[:room]
            last = chunk.positions[:room][-1]
            if room < len(chunk.info):
                rest = chunk._replace(
                    audio=chunk.audio[room:], info=chunk.info[room:], positions=chunk.positions[room:]
                )
                self.waiting.insert(0, rest)
        self.count -= len(info)
        return audio[0] if len(audio) == 1 else torch.cat(audio), tuple(info), last


def outlive_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGUSR1 unless the parent sends them: the `worker_init_fn` of data loaders.

    A scheduler signals all processes of a run. Workers then continue, because the run finishes its step and saves.
    """
    if not hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    awaited = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    threading.Thread(target=_end_with_parent, args=(awaited, os.getppid()), daemon=True).start()


def _end_with_parent(awaited: set[signal.Signals], parent: int) -> None:
    while True:
        if signal.sigwaitinfo(awaited).si_pid == parent:
            os._exit(0)
