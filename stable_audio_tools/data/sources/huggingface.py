"""`"dataset_type": "huggingface"`: Hugging Face datasets on disk, whose other columns are the metadata.

Rows hold audio, or with `spectrogram_column` spectrograms: images (8 bits, lowest band in the first row) or arrays
`(channels, bands, frames)` of natural logarithms. Spectrograms become bands `(d, t)` in [-1, 1], the input of models
with a `mel` pretransform and `"pre_encoded": true`.
"""

import io
import json
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.data.clips import ClipMaker
from stable_audio_tools.data.custom_metadata import CustomMetadata, ItemInfo, call_custom
from stable_audio_tools.data.draws import Draw, seeded
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy
from stable_audio_tools.data.inventory import Inventory, digest
from stable_audio_tools.data.loader import Item, Loader
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.prompts import Captions, add_prompt
from stable_audio_tools.data.sources import request as keys
from stable_audio_tools.data.sources.request import LoaderRequest, metadata_function
from stable_audio_tools.data.sources.tar_items import AudioItems, Content, SampleNames

_LOG_RANGE = (-11.5129, 2.1)  # natural logarithms of amplitudes, as in the mel pretransform for BigVGAN
_SIGNATURES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff", b"ID3": "mp3"}


class ArrowRows:
    """Rows of a folder written by `save_to_disk` or cached by `load_dataset`, memory-mapped."""

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self.folder = _split_folder(Path(folder), split)
        self.files = _arrow_files(self.folder)
        self._batches: list[Any] = []
        self._ends: list[int] = []
        self._open()

    def _open(self) -> None:
        arrow = require("pyarrow", extra="parquet")
        for file in self.files:
            try:
                with arrow.ipc.open_stream(arrow.memory_map(str(file))) as stream:
                    self._batches += stream.read_all().to_batches()
            except (OSError, arrow.ArrowInvalid) as error:
                raise ConfigError(f"{file}: is not an Arrow stream ({error})") from None
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> ItemInfo:
        return self._slice(row).to_pylist()[0]

    def path(self, row: int, column: str) -> str | None:
        """Return the path in a column of files, without reading their bytes; None if there is none."""
        values = self._slice(row).column(column)
        if "path" not in {values.type.field(number).name for number in range(values.type.num_fields)}:
            return None
        path: str | None = values.field("path")[0].as_py()
        return path

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [field.name for field in self._batches[0].schema] if self._batches else []

    def audio_columns(self) -> list[str]:
        """Return the columns of type `Audio`: structs of the file's bytes and its path."""
        if not self._batches:
            return []
        fields = list(self._batches[0].schema)
        return [
            field.name
            for field in fields
            if {"bytes", "path"} <= {field.type.field(n).name for n in range(field.type.num_fields)}
        ]

    def _slice(self, row: int) -> Any:
        batch = bisect_right(self._ends, row)
        first = self._ends[batch - 1] if batch else 0
        return self._batches[batch].slice(row - first, 1)

    def __reduce__(self) -> tuple[type["ArrowRows"], tuple[Path, None]]:
        return type(self), (self.folder, None)


def _split_folder(folder: Path, split: str | None) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; it should be one that datasets' save_to_disk wrote")
    listing = folder / "dataset_dict.json"
    splits = json.loads(listing.read_text())["splits"] if listing.exists() else []
    if not splits:
        if split is not None:
            raise ConfigError(f"{folder}: has no splits, so split {split!r} names nothing; leave it out")
        return folder
    if split is None and len(splits) > 1:
        raise ConfigError(f"{folder}: has the splits {', '.join(splits)}; name one as 'split'")
    if split is not None and split not in splits:
        raise ConfigError(f"{folder}: has no split {split!r}; it has {', '.join(splits)}")
    return folder / (split or splits[0])


def _arrow_files(folder: Path) -> list[Path]:
    about = folder / "state.json"
    state = json.loads(about.read_text()) if about.exists() else {}
    if state.get("_indices_data_files"):
        raise ConfigError(f"{folder}: is a selection of rows; write it again with flatten_indices().save_to_disk(...)")
    named = [folder / entry["filename"] for entry in state.get("_data_files") or ()]
    missing = [file for file in named if not file.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: is missing, but {about} names it")
    files = named or sorted(folder.glob("*.arrow"))
    if files:
        return files
    parquet = sum(1 for _ in folder.rglob("*.parquet"))
    remedy = (
        f"its {parquet} parquet files become one with datasets.load_dataset('parquet', ...).save_to_disk(...)"
        if parquet
        else "datasets' save_to_disk writes one"
    )
    raise ConfigError(f"{folder}: holds no Arrow dataset; {remedy}")


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A folder that `save_to_disk` of the package datasets wrote."""

    path: Annotated[str, Field(min_length=1, description="folder with .arrow files, or with a folder per split")]
    id: keys.FolderId = ""
    split: Annotated[str | None, Field(description="one of the dataset's splits, where it has several")] = None
    audio_column: Annotated[str | None, Field(description="column of audio; null: the only one")] = None
    custom_metadata_module: keys.MetadataModule = None
    weight: keys.Weight = 1.0


class _Entry(NamedTuple):
    """One entry of `datasets`, opened."""

    config: HuggingFaceFolder
    rows: ArrowRows
    column: str
    function: CustomMetadata | None

    @property
    def id(self) -> str:
        return self.config.id or Path(self.config.path).name

    def names(self, row: int) -> SampleNames:
        named = self.rows.path(row, self.column) or f"{row:08d}"
        return SampleNames(f"{self.rows.folder}/{named}", named)


class HuggingFaceSource:
    """Rows of several datasets as numbered items."""

    def __init__(self, entries: Sequence[_Entry], maker: AudioItems, paths: PathFilter | None = None) -> None:
        self.entries, self.maker = entries, maker
        paths = paths or PathFilter()
        kept = []
        for entry in entries:
            rows: Iterable[int] = range(len(entry.rows))
            if paths:
                rows = (row for row in rows if paths.keeps([entry.names(row)], entry.id))
            kept.append(np.fromiter(rows, np.int64))
        self.rows = np.concatenate([np.zeros(0, np.int64), *kept])
        self.groups: NDArray[np.int64] = np.repeat(np.arange(len(entries)), [len(rows) for rows in kept])
        self.weights = np.asarray([entry.config.weight for entry in entries], np.float64)
        self.known_faults: list[Fault] = []
        paths.report()
        if not len(self.rows):
            raise ConfigError(f"no row to train on in {', '.join(str(entry.rows.folder) for entry in entries)}")

    @property
    def num_items(self) -> int:
        return len(self.rows)

    def path(self, item: int) -> str:
        entry, row = self._place(item)
        return entry.names(row).path

    def inventories(self) -> list[Inventory]:
        chosen = [self.rows[self.groups == number] for number in range(len(self.entries))]
        return [
            Inventory(str(entry.rows.folder), len(rows), digest([rows.tobytes()]), partial(map, "row {}".format, rows))
            for entry, rows in zip(self.entries, chosen)
        ]

    def load(self, draw: Draw) -> Item:
        """Decode one crop of the row's audio; its other columns are the metadata."""
        entry, row = self._place(draw.item)
        found = self._content(draw.item)
        return self.maker.make(found.data, found.suffix, found.info, entry.names(row), entry.function, draw.number)

    def contents(self) -> Iterator[Content | Fault]:
        """Yield every encoded row, and a Fault for each row without audio."""
        for item in range(self.num_items):
            try:
                yield self._content(item)
            except AudioError as error:
                yield Fault(self.path(item), "unreadable", str(error))

    def _content(self, item: int) -> Content:
        entry, row = self._place(item)
        info = entry.rows[row]
        data, suffix = _encoded(info.pop(entry.column), entry.rows.folder)
        metadata = {key: value for key, value in info.items() if value is not None and not isinstance(value, bytes)}
        return Content(self.path(item), data, suffix, metadata, entry.function is not None)

    def _place(self, item: int) -> tuple[_Entry, int]:
        return self.entries[self.groups[item]], int(self.rows[item])


class SpectrogramSource(HuggingFaceSource):
    """Rows of spectrograms as numbered items."""

    def __init__(
        self,
        entries: Sequence[_Entry],
        maker: AudioItems,
        paths: PathFilter,
        value_range: tuple[float, float],
        captions: Captions,
    ) -> None:
        super().__init__(entries, maker, paths)
        self.value_range, self.captions = value_range, captions

    def load(self, draw: Draw) -> Item:
        """Decode one spectrogram; the other columns of the row are its metadata."""
        entry, row = self._place(draw.item)
        info = entry.rows[row]
        bands = as_bands(info.pop(entry.column), self.value_range, self.path(draw.item))
        info = {key: value for key, value in info.items() if value is not None and not isinstance(value, bytes)}
        info |= {"path": self.path(draw.item), "padding_mask": torch.ones(bands.shape[-1])}
        add_prompt(info, self.captions, random.Random(draw.number))
        if entry.function is not None:
            with seeded(draw.number):
                info.update(call_custom(entry.function, info, None))
        if info.pop("__reject__", False):
            raise BadItem("rejected", "by get_custom_metadata", lasting=False)
        return Item(bands, info)


def as_bands(value: Any, value_range: tuple[float, float], where: str) -> Tensor:
    """Convert an image, or an array of logarithms, to bands `(channels * bands, frames)` in [-1, 1]."""
    if isinstance(value, Mapping):
        try:
            data = value.get("bytes")
            pixels = np.asarray(Image.open(io.BytesIO(data) if data else value["path"]).convert("L"))
        except (OSError, UnidentifiedImageError, KeyError, TypeError, AttributeError) as error:
            raise AudioError(f"{where}: is not a readable image ({error})") from None
        return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)
    try:
        array = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise AudioError(f"{where}: is neither an image nor an array of numbers ({error})") from None
    if array.ndim not in (2, 3) or not torch.isfinite(array).all():
        raise AudioError(f"{where}: expected finite numbers (channels, bands, frames), got {tuple(array.shape)}")
    low, high = value_range
    return ((array.clamp(low, high) - low) * (2 / (high - low)) - 1).reshape(-1, array.shape[-1])


def _encoded(audio: Mapping[str, Any] | None, folder: Path) -> tuple[bytes | Path, str]:
    """Return the encoded file, or its path, and its suffix."""
    audio = audio or {}
    data, name = audio.get("bytes"), audio.get("path")
    if data:
        known = next((kind for mark, kind in _SIGNATURES.items() if data.startswith(mark)), None)
        return data, known or Path(name or "").suffix[1:].lower() or "mp3"
    if not name:
        raise AudioError("the row holds neither audio nor the path of a file")
    return folder / name, Path(name).suffix[1:].lower()


def _open(entry: HuggingFaceFolder, module: str | None, spectrograms: str | None) -> _Entry:
    rows = ArrowRows(entry.path, entry.split)
    if spectrograms is not None:
        if spectrograms not in rows.columns:
            raise ConfigError(
                f"dataset {entry.id or entry.path!r}: no column named {spectrograms!r} (spectrogram_column); "
                f"its columns are {', '.join(rows.columns)}"
            )
        return _Entry(entry, rows, spectrograms, metadata_function(entry.custom_metadata_module, module))
    known = rows.audio_columns()
    column = entry.audio_column or (known[0] if len(known) == 1 else None)
    if column is None or column not in known:
        there = f"its columns of audio are {', '.join(known)}" if known else "it has no column of audio"
        wanted = f"no column of audio named {column!r}" if column else "audio_column must be named"
        raise ConfigError(f"dataset {entry.id or entry.path!r}: {wanted}; {there}")
    return _Entry(entry, rows, column, metadata_function(entry.custom_metadata_module, module))


@register(
    "dataset",
    "huggingface",
    facts=lambda config: {"holds": "audio" if config.spectrogram_column is None else "latents"},
    check=keys.problems,
)
def huggingface(
    datasets: Annotated[list[HuggingFaceFolder], Field(description="datasets that save_to_disk wrote")],
    random_crop: keys.RandomCrop = True,
    drop_last: keys.DropLast = True,
    custom_metadata_module: keys.MetadataModule = None,
    captions: keys.Prompts = Captions(),  # noqa: B008
    augment_phase: keys.AugmentPhase = True,
    volume_norm: keys.VolumeNorm = False,
    volume_norm_param: keys.VolumeNormParam = (-16, 2),
    allow_silence: keys.AllowSilence = False,
    exclude_paths_file: keys.ExcludePaths = None,
    include_paths_file: keys.IncludePaths = None,
    loose_path_matching: keys.LoosePaths = False,
    on_bad_item: keys.BadItem = "skip",
    quarantine_file: keys.QuarantineFile = None,
    max_bad_fraction: keys.MaxBadFraction = 0.2,
    seed: keys.Seed = None,
    spectrogram_column: Annotated[
        str | None, Field(description="column of spectrograms, images or arrays, in place of audio; for pre_encoded")
    ] = None,
    spectrogram_range: Annotated[
        tuple[float, float], Field(description="values of arrays that become -1 and 1: those of the mel pretransform")
    ] = _LOG_RANGE,
    *,
    request: Runtime[LoaderRequest],
) -> Loader:
    """Hugging Face datasets on disk (Arrow files) of audio or spectrograms, in the rows or in files that they name."""
    request = request.with_seed(seed)
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
    paths = PathFilter(exclude_paths_file, include_paths_file, quarantine_file, loose_path_matching)
    entries = [_open(entry, custom_metadata_module, spectrogram_column) for entry in datasets]
    source = (
        HuggingFaceSource(entries, AudioItems(clips), paths)
        if spectrogram_column is None
        else SpectrogramSource(entries, AudioItems(clips), paths, spectrogram_range, captions)
    )
    return request.loader(source, FaultPolicy(on_bad_item, quarantine_file, max_bad_fraction), drop_last)
