"""Datasets of latents: every item encoded once, under a name that depends only on its place in the dataset.

`<folder>/<rank>/<rank:03d><batch:06d><item:04d>.npy` and `.json`, beside one `details.json`, is the published layout.
Rank and batch refer to the first run. A later run may have other processes and batches: it finds existing latents by
name and adds the rest. The `.json` is written last, so a latent without one was interrupted and is written again.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data.draws import Draw, Order, make_order
from stable_audio_tools.data.faults import BadItem, Fault, FaultReport, whole_path
from stable_audio_tools.data.loader import Item, ItemSource, Loader
from stable_audio_tools.data.shard_plan import OnePass
from stable_audio_tools.data.streaming import ShardSource, StreamLoader

logger = logging.getLogger(__name__)

DETAILS = "details.json"
_LARGEST_LISTED = 1 << 16  # numbers of a tensor that still go into a .json
_FEWEST_TO_JUDGE = 50

# Audio (b, c, n) and a seed for the noise of each item -> latents (b, d, t) or codes (b, q, t).
Encode = Callable[[Tensor, Sequence[int]], Tensor]


class LatentName(NamedTuple):
    """Name of the files of an item."""

    rank: int
    batch: int
    item: int

    @property
    def stem(self) -> str:
        return f"{self.rank}/{self.rank:03d}{self.batch:06d}{self.item:04d}"


@dataclass(frozen=True)
class Layout:
    """Number of processes and items per batch of the first run, from which all names follow."""

    ranks: int
    batch_size: int

    def of_item(self, number: int) -> LatentName:
        """Return the name of an item by its place in the order of the dataset."""
        rank, place = number % self.ranks, number // self.ranks
        return LatentName(rank, place // self.batch_size, place % self.batch_size)

    def of_sample(self, shard: int, sample: int) -> LatentName:
        """Return the name of a sample by its place in its shard."""
        return LatentName(shard % self.ranks, shard, sample)


class Share(NamedTuple):
    """The part of the work that this process does."""

    rank: int = 0
    ranks: int = 1
    batch_size: int = 1
    workers: int = 0
    limit: int | None = None  # items of all processes together


@dataclass
class Outcome:
    """Counts of what one process did."""

    encoded: int = 0
    kept: int = 0  # existed before
    left_out: int = 0

    @property
    def met(self) -> int:
        """Number of items seen, with a floor below which a fraction means little."""
        return max(self.encoded + self.kept + self.left_out, _FEWEST_TO_JUDGE)


# ------------------------------------------------------------------ the folder


class LatentStore:
    """A folder of latents and its details."""

    def __init__(self, root: str | Path, details: Mapping[str, Any], layout: Layout) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.layout = self._agree(details, layout)
        self.autoencoder_key = str(details.get("autoencoder", {}).get("key", ""))
        self._reported: set[str] = set()
        self.marks = self.root / "finished_shards"

    def _agree(self, details: Mapping[str, Any], layout: Layout) -> Layout:
        """Record the settings of a new folder, or check that an existing one has the same."""
        found = read_details(self.root)
        if found is None:
            if any(self.root.glob("*/*.npy")):
                raise ConfigError(f"{self.root}: holds latents without a {DETAILS}; choose an empty folder")
            recorded = {**details, "layout": {"ranks": layout.ranks, "batch_size": layout.batch_size}}
            write_text(self.root / DETAILS, json.dumps(recorded, indent=2) + "\n")
            return layout
        if "layout" not in found:
            raise ConfigError(
                f"{self.root}: its {DETAILS} does not record the settings of its latents; choose an empty folder"
            )
        old, new = found.get("resume", {}), details.get("resume", {})
        problems = [
            f"{self.root}: was written with {key} = {old.get(key)!r}, and this run has {new.get(key)!r}; use the "
            "same value, or choose another folder"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if problems:
            raise ConfigError(problems)
        return Layout(found["layout"]["ranks"], found["layout"]["batch_size"])

    def stems(self) -> set[str]:
        """Return the names of the complete items."""
        stems = set()
        for folder in self.root.iterdir():
            if folder.is_dir() and folder.name.isdigit():
                names = {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}
                complete = {name[:-5] for name in names if name.endswith(".json") and f"{name[:-5]}.npy" in names}
                stems |= {f"{folder.name}/{name}" for name in complete}
        return stems

    def write(self, name: LatentName, latents: Tensor, info: Mapping[str, Any]) -> None:
        """Write latents `(d, t)`, then their metadata."""
        about = self._plain({**info, "padding_mask": latent_mask(info.get("padding_mask"), latents.shape[-1])})
        about["cache_key"] = self._cache_key(info)
        with atomic_path(self.root / f"{name.stem}.npy") as temporary:
            np.save(temporary, latents.numpy())
        write_text(self.root / f"{name.stem}.json", json.dumps(about))

    def _plain(self, info: Mapping[str, Any]) -> JsonObject:
        """Return metadata that a .json can hold, without the clip and values of other types."""
        plain = {}
        for key, value in info.items():
            if key == "audio":
                continue
            if isinstance(value, Tensor | np.ndarray):
                value = value.tolist() if np.prod(value.shape) <= _LARGEST_LISTED else value
            try:
                plain[key] = json.loads(json.dumps(value))
            except (TypeError, ValueError):
                if key not in self._reported:
                    logger.warning("metadata %r (%s) is not kept with the latents", key, type(value).__name__)
                self._reported.add(key)
        return plain

    def _cache_key(self, info: Mapping[str, Any]) -> str:
        """Return a key of the autoencoder, the state of the audio file and the place of the crop."""
        path = str(info.get("path", ""))
        try:
            status = Path(path).stat()
            state: list[int] = [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # a sample of a shard
            state = []
        words = [self.autoencoder_key, path, state, list(info.get("timestamps", ()))]
        return sha256(json.dumps(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def is_finished(self, shard: int) -> bool:
        return (self.marks / f"{shard:06d}").exists()

    def finish(self, shard: int) -> None:
        """Mark a shard whose samples are all written or left out."""
        write_text(self.marks / f"{shard:06d}", "")


def read_details(root: str | Path) -> JsonObject | None:
    """Read the details of a folder of latents; None if it has none."""
    try:
        found = json.loads(Path(root, DETAILS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{Path(root, DETAILS)}: cannot be read ({error})") from None
    return found if isinstance(found, dict) else None


def latent_mask(mask: Tensor | None, frames: int) -> list[int]:
    """Convert a mask of samples `(n,)` to one entry per frame of latents."""
    if mask is None:
        return [1] * frames
    return [int(value) for value in F.interpolate(mask.float()[None, None], size=frames, mode="nearest")[0, 0]]


# ------------------------------------------------------------------ the work


def dataset_key(loader: Any) -> str:
    """Return a digest of the files of a dataset, their sizes, times and order."""
    digest = sha256()
    if isinstance(loader, StreamLoader):
        source: Any = loader.source
        for group, number in source.places:
            digest.update(f"{source.entries[group].id}/{source.entries[group].shelf.names[number]}\n".encode())
        return digest.hexdigest()[:32]
    dataset = loader.dataset
    for item in range(len(dataset.groups)):
        place = dataset.files.place(item)
        index, row = place.folder.index, place.row
        words = f"{place.folder.config.id}/{place.relpath}\t{index.sizes[row]}\t{index.mtimes[row]}\n"
        digest.update(words.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def work_size(loader: Any, share: Share) -> int | None:
    """Return the number of items of this process; None if it is unknown."""
    if isinstance(loader, StreamLoader):
        if loader.source.counts is None:
            return _share_of(share.limit, share)
        counts = loader.source.counts
        mine = int(sum(counts[shard] for shard in range(share.rank, len(counts), share.ranks)))
        return mine if share.limit is None else min(mine, _share_of(share.limit, share) or 0)
    total = len(make_order(loader.dataset.groups, loader.dataset.weights, 0, loader.seed, loader.shuffle))
    return _share_of(total if share.limit is None else min(total, share.limit), share)


def _share_of(total: int | None, share: Share) -> int | None:
    return None if total is None else len(range(share.rank, total, share.ranks))


def pre_encode(loader: Any, store: LatentStore, encode: Encode, share: Share) -> Iterator[Outcome]:
    """Encode the share of this process; yield the counts after each batch."""
    outcome, report = Outcome(), loader.report
    report.begin_epoch()
    total = work_size(loader, share)
    waiting: list[_Visited] = []
    for found in _entries(loader, store, share):
        if found.error is not None:
            raise found.error
        if found.fault is not None:
            outcome.left_out += 1
            report.add(found.fault, max(total or 0, outcome.met))
        elif found.kept:
            outcome.kept += 1
            continue
        waiting.append(found)
        items = sum(one.item is not None for one in waiting)
        if items >= share.batch_size or (found.ends_shard and not items):
            _flush(waiting, store, encode, loader.seed, report, outcome)
            yield outcome
    _flush(waiting, store, encode, loader.seed, report, outcome)
    yield outcome


def noise_seed(seed: int, place: str) -> int:
    """Return the seed of the noise of the item at a place: the same in every batch, process and resumed run."""
    return int.from_bytes(sha256(f"{seed}/{place}".encode()).digest()[:7], "big")


def _flush(
    waiting: "list[_Visited]", store: LatentStore, encode: Encode, seed: int, report: FaultReport, outcome: Outcome
) -> None:
    """Encode and write the items that wait; a shard is finished once its last item is written."""
    chosen = [found for found in waiting if found.item is not None]
    if chosen:
        audio = torch.stack([found.item.audio for found in chosen if found.item is not None])
        latents = encode(audio, [noise_seed(seed, found.place) for found in chosen])
        for found, encoded in zip(chosen, latents):
            assert found.item is not None
            if encoded.is_floating_point() and not torch.isfinite(encoded).all():
                path = str(found.item.info.get("path", found.name.stem))
                outcome.left_out += 1
                report.add(Fault(path, "not finite", "the autoencoder gave NaN or infinite latents"), outcome.met)
                continue
            store.write(found.name, encoded, found.item.info)
            outcome.encoded += 1
    for found in waiting:
        if found.ends_shard:
            store.finish(found.name.batch)
    waiting.clear()


class _Visited(NamedTuple):
    """One item of the dataset, read, kept from an earlier run, or left out."""

    name: LatentName
    place: str = ""  # in the dataset, whatever the layout of files is
    item: Item | None = None
    fault: Fault | None = None
    kept: bool = False
    ends_shard: bool = False
    error: UserError | None = None


def _entries(loader: Any, store: LatentStore, share: Share) -> Iterator[_Visited]:
    done = store.stems()
    source: Dataset[Any]
    if isinstance(loader, StreamLoader):
        source, order = _Shards(loader, store, share, done), None
    elif isinstance(loader, Loader):
        every = make_order(loader.dataset.groups, loader.dataset.weights, 0, loader.seed, loader.shuffle)
        stop = len(every) if share.limit is None else min(len(every), share.limit)
        mine = range(share.rank, stop, share.ranks)
        order = [number for number in mine if store.layout.of_item(number).stem not in done]
        kept = _Visited(LatentName(0, 0, 0), kept=True)
        yield from (kept for _ in range(len(mine) - len(order)))
        source = _Items(loader.dataset, every, loader.seed, store.layout)
    else:
        raise ConfigError(f"this kind of dataset ({type(loader).__name__}) cannot be encoded")
    yield from DataLoader(
        source,
        batch_size=None,
        sampler=order,
        collate_fn=_unchanged,  # type: ignore[arg-type]  # without batches it receives single items
        num_workers=share.workers,
        generator=torch.Generator(),
    )


def _unchanged(entry: _Visited) -> _Visited:  # workers that are spawned cannot receive a lambda
    return entry


def _try(name: LatentName, place: str, path: str, load: Callable[[], Item | None]) -> _Visited | None:
    """Load an item; None if a path list excludes it."""
    try:
        item = load()
    except BadItem as error:
        return _Visited(name, fault=error.at(path))
    except AudioError as error:
        return _Visited(name, fault=Fault(path, "unreadable", str(error).removeprefix(f"{path}: ")))
    except UserError as error:  # raised again where the user sees it, without the worker's traceback
        return _Visited(name, error=error)
    return None if item is None else _Visited(name, place, item)


class _Items(Dataset[Any]):
    """Items of files, by their place in the order."""

    def __init__(self, source: ItemSource, order: Order, seed: int, layout: Layout) -> None:
        self.source, self.order, self.seed, self.layout = source, order, seed, layout

    def __getitem__(self, number: int) -> _Visited:
        draw = Draw(int(self.order.items[number]), 0, int(self.order.visits[number]), self.seed)
        path, load = self.source.path(draw.item), partial(self.source.load, draw)
        found = _try(self.layout.of_item(number), str(number), path, load)
        assert found is not None
        return found


class _Shards(IterableDataset[Any]):
    """Samples of shards; each worker reads whole shards and skips finished ones."""

    def __init__(self, loader: StreamLoader, store: LatentStore, share: Share, done: set[str]) -> None:
        self.source: ShardSource = loader.source
        self.order = OnePass(loader.source.groups, loader.source.weights, 0, loader.seed, loader.shuffle)
        self.store, self.share, self.done = store, share, done

    def __iter__(self) -> Iterator[_Visited]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        limit = _share_of(self.share.limit, self.share)
        left = None if limit is None else len(range(first, limit, step))
        for visit_number in range(self.share.rank, len(self.order), self.share.ranks)[first::step]:
            if left is not None and left <= 0:
                return
            for found in self._shard(visit_number, left):
                left = left if left is None else left - (not found.ends_shard)
                yield found

    def _shard(self, visit_number: int, most: int | None) -> Iterator[_Visited]:
        layout, dealt = self.store.layout, self.order[visit_number]
        if self.store.is_finished(visit_number):
            prefix = layout.of_sample(visit_number, 0).stem[:-4]
            kept = sum(stem.startswith(prefix) for stem in self.done)
            most = kept if most is None else min(kept, most)
            yield from (_Visited(layout.of_sample(visit_number, 0), kept=True) for _ in range(most))
            return
        number = 0
        samples = self.source.samples(dealt.shard, 0)
        while most is None or number < most:
            name = layout.of_sample(visit_number, number)
            try:
                sample = next(samples, None)
            except AudioError as error:
                yield _Visited(name, fault=Fault(self.source.path(dealt.shard), "unreadable", str(error)))
                return
            if sample is None:
                yield _Visited(name, ends_shard=True)
                return
            if name.stem in self.done:
                yield _Visited(name, kept=True)
            else:
                path = self.source.path(dealt.shard, sample)
                load = partial(self.source.load, dealt.shard, sample, dealt)
                found = _try(name, f"{visit_number}/{number}", path, load)
                if found is not None:
                    yield found
            number += 1


def left_out_list(faults: Sequence[Fault]) -> str:
    """Return the faults as the text of a path list."""
    lines = (f"{whole_path(fault.path)}\t# {fault.kind}: {fault.detail}".replace("\n", " ") for fault in faults)
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))
