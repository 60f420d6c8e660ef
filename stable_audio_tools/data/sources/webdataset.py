"""`"dataset_type": "wds"` (and `"s3"`): tar shards in folders or in S3 buckets, streamed.

A sample is a group of neighbouring files with one name: audio (or latents), `.json` for its metadata, `.txt` for its
prompt. Shards are read front to back, so an epoch needs no random access and opens every shard once.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from types import SimpleNamespace
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.clips import ClipMaker
from stable_audio_tools.data.custom_metadata import ItemInfo, MetadataFunction
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy
from stable_audio_tools.data.inventory import Inventory, of_lines
from stable_audio_tools.data.loader import Item
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.prompts import Captions
from stable_audio_tools.data.shard_plan import ShardVisit
from stable_audio_tools.data.sources import request as keys
from stable_audio_tools.data.sources.request import (
    LoaderRequest,
    LocalWebDatasetConfig,
    S3DatasetConfig,
    metadata_function,
)
from stable_audio_tools.data.sources.s3 import S3Account, S3Shelf
from stable_audio_tools.data.sources.tar_items import (
    AudioItems,
    Content,
    ItemMaker,
    LatentItems,
    SampleNames,
    SilenceRemoval,
)
from stable_audio_tools.data.streaming import StreamLoader
from stable_audio_tools.data.tar_stream import (
    SHARD_SUFFIXES,
    LocalShelf,
    Shelf,
    TarSample,
    decompressed,
    is_compressed,
    read_samples,
)

logger = logging.getLogger(__name__)

_WORDS = frozenset({"json", "txt"})
_CHANNELS = {"mono": 1, "stereo": 2}


class Entry(NamedTuple):
    """One entry of `datasets` with its shards."""

    id: str
    shelf: Shelf
    function: MetadataFunction | None
    weight: float = 1.0


class TarSource:
    """The samples of several entries, for a StreamLoader."""

    def __init__(
        self, entries: Sequence[Entry], maker: ItemMaker, paths: PathFilter | None = None, seed: int = 0
    ) -> None:
        self.entries, self.maker, self.seed = entries, maker, seed
        self.paths = paths or PathFilter()
        self.wanted = maker.suffixes | _WORDS
        self.known_faults = [fault for entry in entries for fault in entry.shelf.faults]
        every = [(group, number) for group, entry in enumerate(entries) for number in range(len(entry.shelf.names))]
        self.places = [place for place in every if not self._is_left_out(*place)]
        if not self.places:
            raise _nothing_found(entries, self.known_faults)
        self.groups = np.asarray([group for group, _ in self.places], np.int64)
        self.weights = np.asarray([entry.weight for entry in entries], np.float64)
        counts = [entry.shelf.counts for entry in entries]
        known = [count for count in counts if count is not None]
        self.counts = np.asarray([known[g][n] for g, n in self.places], np.int64) if len(known) == len(counts) else None
        samples = "" if self.num_items is None else f" with {self.num_items} samples"
        logger.info("%d shards%s in %s", len(self.places), samples, ", ".join(entry.shelf.root for entry in entries))

    @property
    def num_items(self) -> int | None:
        """Return the samples in all shards, if known."""
        return None if self.counts is None else int(self.counts.sum())

    def inventories(self) -> list[Inventory]:
        """Return the shards of each entry, with their numbers of samples if known."""
        lines: list[list[str]] = [[] for _ in self.entries]
        for shard, (group, number) in enumerate(self.places):
            samples = "" if self.counts is None else f" ({self.counts[shard]} samples)"
            lines[group].append(f"{self.entries[group].shelf.names[number]}{samples}")
        return [of_lines(entry.shelf.root, own) for entry, own in zip(self.entries, lines)]

    def samples(self, shard: int, offset: int) -> Iterator[TarSample]:
        group, number = self.places[shard]
        path = self.path(shard)
        packed = is_compressed(path)
        with closing(self.entries[group].shelf.open(number, 0 if packed else offset)) as stream:
            content = decompressed(stream, offset) if packed else stream
            yield from read_samples(content, self.wanted, path, offset)

    def path(self, shard: int, sample: TarSample | None = None) -> str:
        group, number = self.places[shard]
        path = self.entries[group].shelf.path(number)
        return path if sample is None else f"{path}/{self._name(sample)}"

    def load(self, shard: int, sample: TarSample, visit_number: ShardVisit) -> Item | None:
        group, number = self.places[shard]
        entry = self.entries[group]
        names = SampleNames(self.path(shard, sample), f"{entry.shelf.names[number]}/{self._name(sample)}")
        if self.paths and not self.paths.keeps([names, (self.path(shard), entry.shelf.names[number])], entry.id):
            return None
        suffix = self._main_suffix(sample)
        if suffix is None:
            raise BadItem("unreadable", f"none of its files is {self.maker.noun}: {', '.join(sample.files)}")
        draw = Draw(_number(entry.id, names.relpath), visit_number.epoch, visit_number.visit, self.seed)
        return self.maker.make(sample.files[suffix], suffix, _words(sample), names, entry.function, draw.number)

    def contents(self) -> Iterator[Content | Fault]:
        """Yield every encoded sample in the order of the shards, and a Fault for each unreadable one."""
        yield from self.known_faults
        for shard, (group, _) in enumerate(self.places):
            try:
                for sample in self.samples(shard, 0):
                    yield self._content(shard, sample, has_code=self.entries[group].function is not None)
            except AudioError as error:
                yield Fault(self.path(shard), "unreadable", str(error).removeprefix(f"{self.path(shard)}: "))

    def _content(self, shard: int, sample: TarSample, has_code: bool) -> Content | Fault:
        path, suffix = self.path(shard, sample), self._main_suffix(sample)
        if suffix is None:
            return Fault(path, "unreadable", f"none of its files is {self.maker.noun}: {', '.join(sample.files)}")
        try:
            return Content(path, sample.files[suffix], suffix, _words(sample), has_code)
        except BadItem as error:
            return error.at(path)

    def met(self, shard: int, sample_name: str) -> None:
        """Count a sample that another process has looked at, for the report of the path lists."""
        group, number = self.places[shard]
        entry = self.entries[group]
        shard_names = (self.path(shard), entry.shelf.names[number])
        self.paths.keeps(
            [(f"{shard_names[0]}/{sample_name}", f"{shard_names[1]}/{sample_name}"), shard_names], entry.id
        )

    def end_pass(self) -> None:
        self.paths.report()

    def _main_suffix(self, sample: TarSample) -> str | None:
        return next((suffix for suffix in sample.files if suffix.rpartition(".")[2] in self.maker.suffixes), None)

    def _name(self, sample: TarSample) -> str:
        return f"{sample.key}.{self._main_suffix(sample) or next(iter(sample.files))}"

    def _is_left_out(self, group: int, number: int) -> bool:
        shelf, id = self.entries[group].shelf, self.entries[group].id
        lists = [chosen for chosen in (self.paths.exclude, self.paths.quarantine) if chosen]
        fits = [chosen.fits(shelf.path(number), shelf.names[number], id) for chosen in lists]
        return any(fits)


def _number(id: str, relpath: str) -> int:
    """Return the sample's own number, independent of the location of its shards."""
    return int.from_bytes(blake2b(f"{id}/{relpath}".encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _words(sample: TarSample) -> ItemInfo:
    """Return the contents of the sample's `.json` and `.txt`; the former takes precedence."""
    info: ItemInfo = {}
    for suffix, content in sorted(sample.files.items(), key=lambda file: file[0].endswith("json")):
        kind = suffix.rpartition(".")[2]
        if kind not in _WORDS:
            continue
        try:
            found = json.loads(content) if kind == "json" else {"prompt": content.decode("utf-8-sig").strip()}
        except (ValueError, RecursionError) as error:
            raise BadItem("bad metadata", f"its .{suffix} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise BadItem("bad metadata", f"its .{suffix} holds no JSON object, but {type(found).__name__}")
        info.update(found)
    return info


def _nothing_found(entries: Sequence[Entry], faults: Sequence[Fault]) -> Exception:
    roots = ", ".join(entry.shelf.root for entry in entries) or "no place"
    if faults:
        return AudioError(f"no usable shard in {roots}: {len(faults)} unreadable; first: {faults[0]}")
    if any(entry.shelf.names for entry in entries):
        return ConfigError(f"no usable shard in {roots}: the path lists leave none")
    return ConfigError(f"no usable shard in {roots}: looked for {', '.join(SHARD_SUFFIXES)}")


# ------------------------------------------------------------------ from JSON


@dataclass(frozen=True)
class TarEntry:
    """A folder of tar shards (`path`), or an S3 address above some (`s3_path`)."""

    path: Annotated[str | None, Field(description="folder of .tar files, searched with all folders below it")] = None
    s3_path: Annotated[str | None, Field(description="address above .tar objects, such as s3://bucket/folder/")] = None
    id: keys.FolderId = ""
    profile: Annotated[str | None, Field(description="section of ~/.aws/config and ~/.aws/credentials")] = None
    endpoint_url: Annotated[str | None, Field(description="address of an S3 service other than Amazon's")] = None
    region: Annotated[str | None, Field(description="region of the service")] = None
    anonymous: Annotated[bool, Field(description="send no credentials, for public buckets")] = False
    custom_metadata_module: keys.MetadataModule = None
    weight: keys.Weight = 1.0

    @property
    def address(self) -> str | None:
        """Return the address in S3; None for a local folder."""
        return self.s3_path or (self.path if self.path and self.path.startswith("s3://") else None)

    def list(self, maker: ItemMaker, module: str | None, count: bool) -> Entry:
        function = metadata_function(self.custom_metadata_module, module)
        shelf: Shelf
        if self.address is not None:
            shelf = S3Shelf(self.address, S3Account(self.profile, self.endpoint_url, self.region, self.anonymous))
        else:
            assert self.path is not None
            shelf = LocalShelf(self.path, maker.suffixes | _WORDS, count)
        return Entry(self.id or shelf.root.rstrip("/").rpartition("/")[2], shelf, function, self.weight)


def _problems(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    yield from keys.problems(config)
    for index, entry in enumerate(config.datasets):
        if (entry.path is None) == (entry.s3_path is None):
            yield f"datasets[{index}]", "give one of path (a folder) and s3_path (an address like s3://bucket/folder/)"
        elif entry.s3_path is not None and not entry.s3_path.startswith("s3://"):
            yield f"datasets[{index}].s3_path", f"expected an address like s3://bucket/folder/, got {entry.s3_path!r}"


def _facts(config: SimpleNamespace) -> ItemInfo:
    return {"holds": "latents" if config.pre_encoded else "audio"}


@register("dataset", "s3", ignored=("latent_extension",), facts=_facts, check=_problems)
@register("dataset", "wds", ignored=("latent_extension",), facts=_facts, check=_problems)
def webdataset(
    datasets: Annotated[list[TarEntry], Field(description="where the shards lie")],
    random_crop: keys.RandomCrop = True,
    drop_last: keys.DropLast = True,
    custom_metadata_module: keys.MetadataModule = None,
    captions: keys.Prompts = Captions(),  # noqa: B008
    resampled_shards: Annotated[
        bool,
        Field(description="in training, epochs of epoch_steps batches, going on without end; false: each shard once"),
    ] = True,
    epoch_steps: Annotated[int, Field(ge=1, description="batches of an epoch (with resampled_shards)")] = 2000,
    parallel_shards: Annotated[
        int, Field(ge=1, description="shards that all processes read at once, taking items from them in turn")
    ] = 24,
    augment_phase: keys.AugmentPhase = True,
    remove_silence: Annotated[bool, Field(description="cut long silences of mono files down")] = False,
    silence_threshold: Annotated[
        Sequence[float],
        Field(min_length=2, max_length=2, description="level below which there is silence; seconds kept of a long one"),
    ] = (0.01, 0.5),
    max_silence_duration: Annotated[float, Field(ge=0, description="seconds from which a silence is long")] = 0.25,
    volume_norm: keys.VolumeNorm = False,
    volume_norm_param: keys.VolumeNormParam = (-16, 2),
    allow_silence: keys.AllowSilence = False,
    pre_encoded: Annotated[bool, Field(description="the shards hold latents (.npy), not audio")] = False,
    latent_crop_length: Annotated[int | None, Field(ge=1, description="latent frames per item; null: all")] = None,
    exclude_paths_file: keys.ExcludePaths = None,
    include_paths_file: keys.IncludePaths = None,
    loose_path_matching: keys.LoosePaths = False,
    on_bad_item: keys.BadItem = "skip",
    quarantine_file: keys.QuarantineFile = None,
    max_bad_fraction: keys.MaxBadFraction = 0.2,
    seed: keys.Seed = None,
    *,
    request: Runtime[LoaderRequest],
) -> StreamLoader:
    """Tar shards with audio (or latents) and metadata, in folders or in S3 buckets."""
    request = request.with_seed(seed)
    maker: ItemMaker
    if pre_encoded:
        maker = LatentItems(latent_crop_length, random_crop, captions)
    else:
        clips = ClipMaker(
            request.sample_size,
            request.sample_rate,
            request.audio_channels,
            random_crop=random_crop,
            augment_phase=augment_phase,
            volume_norm=volume_norm_param if volume_norm else None,
            allow_silence=allow_silence,
            captions=captions,
        )
        removal = (
            SilenceRemoval(silence_threshold[0], silence_threshold[1], max_silence_duration) if remove_silence else None
        )
        maker = AudioItems(clips, removal)
    resampled = resampled_shards and request.shuffle
    entries = [entry.list(maker, custom_metadata_module, count=not resampled) for entry in datasets]
    paths = PathFilter(exclude_paths_file, include_paths_file, quarantine_file, loose_path_matching)
    return StreamLoader(
        TarSource(entries, maker, paths, request.seed),
        request.batch_size,
        shuffle=request.shuffle,
        drop_last=drop_last,
        num_workers=request.num_workers,
        seed=request.seed,
        policy=FaultPolicy(on_bad_item, quarantine_file, max_bad_fraction),
        resampled=resampled,
        epoch_steps=epoch_steps,
        parallel_shards=parallel_shards,
        rank=request.rank,
        world_size=request.world_size,
    )


class WebDatasetDataLoader:
    """A loader of tar shards for code without JSON; `data_loader` returns the batches."""

    def __init__(
        self,
        datasets: Sequence[LocalWebDatasetConfig | S3DatasetConfig],
        batch_size: int,
        sample_size: int,
        sample_rate: int = 48000,
        num_workers: int = 8,
        epoch_steps: int = 1000,
        random_crop: bool = True,
        force_channels: str = "stereo",
        augment_phase: bool = True,
        remove_silence: bool = True,
        silence_threshold: Sequence[float] = (0.01, 0.5),
        max_silence_duration: float = 0.2,
        volume_norm: bool = False,
        volume_norm_param: Sequence[float] = (-16, 2),
        pre_encoded: bool = False,
        latent_crop_length: int | None = None,
        resampled_shards: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        maker: ItemMaker
        if pre_encoded:
            maker = LatentItems(latent_crop_length, random_crop, Captions())
        else:
            clips = ClipMaker(
                sample_size,
                sample_rate,
                _CHANNELS[force_channels],
                random_crop=random_crop,
                augment_phase=augment_phase,
                volume_norm=volume_norm_param if volume_norm else None,
            )
            removal = (
                SilenceRemoval(silence_threshold[0], silence_threshold[1], max_silence_duration)
                if remove_silence
                else None
            )
            maker = AudioItems(clips, removal)
        entries = []
        for config in datasets:
            shelf: Shelf
            if isinstance(config, S3DatasetConfig):
                shelf = S3Shelf(config.s3_path, S3Account(config.profile))
            else:
                shelf = LocalShelf(config.path, maker.suffixes | _WORDS, count=not resampled_shards)
            entries.append(Entry(config.id, shelf, config.custom_metadata_fn))
        self.datasets = datasets
        self.data_loader = StreamLoader(
            TarSource(entries, maker, seed=seed),
            batch_size,
            num_workers=num_workers,
            seed=seed,
            resampled=resampled_shards,
            epoch_steps=epoch_steps,
        )
