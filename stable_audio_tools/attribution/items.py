"""Numbered items to attribute: the items of a dataset, or generated files with their manifest.

Each item occurs once, in the order of the files, without polarity flips. Unreadable items are reported and left out,
never replaced.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stable_audio_tools.attribution.keyed_random import make_key
from stable_audio_tools.attribution.settings import ItemSettings
from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.core.files import content_digest
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import create_dataloader_from_config, load_dataset_config
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.faults import BadItem, Fault
from stable_audio_tools.data.loader import Item, Loader
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.sources.latents import as_tensor
from stable_audio_tools.data.transforms import describe_crop, set_channels, take

# Audio; input of the diffusion model; or the form of the training data, from the model config or a flag.
Form = Literal["audio", "latents", "data"]

_MANIFESTS = ("manifest.jsonl", "prompt_manifest.json")
# Keys of a dataset config that select items and so affect their list; the crop is recorded separately.
_CHOOSING = {"datasets", "include_paths_file", "exclude_paths_file", "quarantine_file", "loose_path_matching"}
_CHOOSING |= {"on_bad_item", "max_bad_fraction", "drop_last", "min_length_sec", "max_length_sec", "random_crop"}


class AudioShape(NamedTuple):
    """Format of the audio that a model takes."""

    sample_size: int
    sample_rate: int
    channels: int
    latent_channels: int | None = None  # input channels of the diffusion model; None: not checked


class Items(Protocol):
    """Numbered items; `load` raises AudioError where one cannot be used."""

    faults: list[Fault]  # known before anything is read
    data_key: str  # changes with the files, and with what is written about them

    def __len__(self) -> int: ...

    def path(self, number: int) -> str:
        """Return the file, which is the item's line in the list of ids."""

    def key(self, number: int) -> str:
        """Return the key of the item's noise, equal on every machine."""

    def load(self, number: int) -> Item: ...

    def form(self, number: int) -> Form:
        """Return the form of the item's content."""


def read_dataset(settings: ItemSettings) -> JsonObject | None:
    """Return the dataset config without dropped or repeated items and without phase flips; None without a dataset."""
    if settings.dataset_config is None:
        return None
    dataset = {**load_dataset_config(settings.dataset_config), "drop_last": False, "augment_phase": False}
    return {**dataset, "random_crop": False} if settings.disable_random_crop else dataset


def is_pre_encoded(settings: ItemSettings, training: JsonObject) -> bool:
    """Return whether the dataset holds latents, by the settings or else the training section of the model config."""
    return bool(training.get("pre_encoded", False)) if settings.pre_encoded is None else settings.pre_encoded


class _KeyedDraw(Draw):
    """Random choices of a visit that depend on the item's key, not on its position among the files."""

    key: str

    @property
    def number(self) -> int:
        return make_key("draw", self.seed, self.key)


class DatasetItems:
    """Each item of a dataset once."""

    def __init__(self, config: JsonObject, shape: AudioShape, seed: int, limit: int | None = None) -> None:
        loader = create_dataloader_from_config(
            config, 1, shape.sample_size, shape.sample_rate, shape.channels, num_workers=0, shuffle=False, seed=seed
        )
        if not isinstance(loader, Loader) or not hasattr(loader.dataset, "files"):
            raise ConfigError(
                f"dataset_type: attribution needs files with names, which a "
                f"{config.get('dataset_type')!r} dataset lacks; encode it with pre_encode.py and use the latents"
            )
        self.source: Any = loader.dataset
        self.seed = seed
        self.count = len(self.source.groups) if limit is None else min(limit, len(self.source.groups))
        self.faults: list[Fault] = list(self.source.known_faults)
        self.data_key = self._data_key(config)

    def __len__(self) -> int:
        return self.count

    def path(self, number: int) -> str:
        found: str = self.source.path(number)
        return found

    def key(self, number: int) -> str:
        place = self.source.files.place(number)
        return f"{place.folder.config.id}/{place.relpath}"

    def load(self, number: int, crop: int = 0) -> Item:
        draw = _KeyedDraw(number, seed=self.seed)
        draw.key = crop_key(self.key(number), crop)
        item: Item = self.source.load(draw)
        return item

    def form(self, number: int) -> Form:
        return "data"

    def _data_key(self, config: JsonObject) -> str:
        digest = sha256(json.dumps(_described(config)).encode())
        for number in range(self.count):
            place = self.source.files.place(number)
            index, row = place.folder.index, place.row
            state = [int(index.sizes[row]), int(index.mtimes[row]), *_beside(Path(place.path))]
            digest.update(json.dumps([self.key(number), state]).encode())
        return digest.hexdigest()[:32]


def crop_key(key: str, crop: int) -> str:
    """Return the key of a crop of an item; the first crop has the key of the item."""
    return f"{key}#{crop}" if crop else key


class CroppedItems:
    """Several random crops of each item of a dataset, numbered consecutively."""

    def __init__(self, items: DatasetItems, crops: int) -> None:
        self.items, self.crops = items, crops
        self.faults, self.data_key = items.faults, items.data_key

    def __len__(self) -> int:
        return len(self.items) * self.crops

    def path(self, number: int) -> str:
        return self.items.path(number // self.crops)

    def key(self, number: int) -> str:
        return crop_key(self.items.key(number // self.crops), number % self.crops)

    def load(self, number: int) -> Item:
        return self.items.load(*divmod(number, self.crops))

    def form(self, number: int) -> Form:
        return self.items.form(number // self.crops)


def _described(config: JsonObject) -> list[object]:
    """Return the parts of a dataset config that describe items: captions, tables and code, with digests of files."""
    folders = [{key: value for key, value in folder.items() if key != "path"} for folder in config["datasets"]]
    described = [{key: value for key, value in config.items() if key not in _CHOOSING}, *folders]
    named = (part.get(key) for part in described for key in ("metadata_path", "custom_metadata_module"))
    files = [content_digest(name) for name in named if name and Path(name).is_file()]
    return [described, files]


def _beside(path: Path) -> list[tuple[int, int] | None]:
    """Return sizes and times of the sidecars."""
    sidecars = [path.with_suffix(suffix) for suffix in (".txt", ".json")]
    states = [sidecar.stat() if sidecar.is_file() else None for sidecar in sidecars]
    return [(state.st_size, state.st_mtime_ns) if state else None for state in states]


class GeneratedItems:
    """Files that a manifest describes; kept latents (`NAME.npy`) are used instead of the audio."""

    def __init__(
        self, folder: str | Path, shape: AudioShape, limit: int | None = None, paths: PathFilter | None = None
    ) -> None:
        self.folder, self.shape = Path(folder), shape
        self.records = self._chosen(read_manifest(self.folder), paths or PathFilter())[:limit]
        self.faults: list[Fault] = []
        files = [self._file(number) for number in range(len(self))]
        about = [
            [record, content_digest(path) if path.is_file() else None] for record, path in zip(self.records, files)
        ]
        self.data_key = sha256(json.dumps(about).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.records)

    def path(self, number: int) -> str:
        audio = self.folder / self.records[number]["file"]
        return str(audio if audio.is_file() else self._file(number))

    def key(self, number: int) -> str:
        return str(self.records[number]["file"])

    def form(self, number: int) -> Form:
        return "latents" if self._file(number).suffix == ".npy" else "audio"

    def load(self, number: int) -> Item:
        path, record = self._file(number), self.records[number]
        info = {"path": str(path), **record["conditions"]}
        if path.suffix == ".npy":
            return Item(_read_latents(path, self.shape.latent_channels), info)
        shape = self.shape
        audio = audio_io.read(path, 0, shape.sample_size, shape.sample_rate).samples
        if not audio.isfinite().all():
            raise BadItem("not finite", "holds NaN or infinite samples")
        facts = describe_crop(0, shape.sample_size, audio.shape[-1], shape.sample_rate)
        info = {"seconds_start": 0, "seconds_total": facts.seconds_total, **info, "padding_mask": facts.padding_mask}
        return Item(set_channels(take(audio, 0, shape.sample_size), shape.channels), info)

    def _file(self, number: int) -> Path:
        audio = self.folder / self.records[number]["file"]
        latents = audio.with_suffix(".npy")
        return latents if latents.is_file() else audio

    def _chosen(self, records: list[JsonObject], paths: PathFilter) -> list[JsonObject]:
        chosen = [record for record in records if paths.keeps([(str(self.folder / record["file"]), record["file"])])]
        paths.report()
        if not chosen:
            raise ConfigError(f"{self.folder}: --include-paths-file and --exclude-paths-file exclude all of its files")
        return chosen


def _read_latents(path: Path, channels: int | None) -> Tensor:
    """Read latents (d, t) in float32 from a file."""
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, OverflowError, SyntaxError) as error:
        raise AudioError(f"{path}: no readable latents ({error})") from None
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "fiu":
        raise AudioError(f"{path}: holds no array of numbers")
    shape = stored.shape
    stored = stored[0] if len(shape) == 3 and shape[0] == 1 else stored
    if stored.ndim != 2 or 0 in shape or channels not in (None, stored.shape[0]):
        rows = "channels" if channels is None else channels
        raise AudioError(f"{path}: expected latents of shape ({rows}, frames), got {shape}")
    with np.errstate(over="ignore"):
        latents = as_tensor(stored).float()
    if not latents.isfinite().all():
        raise BadItem("not finite", f"{path.name} holds NaN or infinite latents")
    return latents


def read_manifest(folder: Path) -> list[JsonObject]:
    """Read `file` and `conditions` of all generated files from `manifest.jsonl` or `prompt_manifest.json`."""
    path = next((folder / name for name in _MANIFESTS if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder}: holds neither {' nor '.join(_MANIFESTS)}, which name the files and their prompts")
    records = _original_records(path) if path.suffix == ".json" else _records(path)
    if not records:
        raise ConfigError(f"{path}: names no files")
    return [_checked(record, f"{path}, entry {number}") for number, record in enumerate(records, 1)]


def _records(path: Path) -> list[object]:
    """Read the lines of `manifest.jsonl`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: a line is not valid JSON ({error})") from None


def _original_records(path: Path) -> list[object]:
    """Read the manifest of the original scripts in our form."""
    entries = load(path).get("items", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path}: "items" must be a list of objects, one for each file')
    return [
        {"file": entry.get("filename"), "conditions": {k: v for k, v in entry.items() if k != "filename"}}
        for entry in entries
    ]


def _checked(record: object, place: str) -> JsonObject:
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: expected an object with file and conditions, got {type(record).__name__}")
    file, conditions = record.get("file"), record.get("conditions")
    if not isinstance(file, str) or not file:
        raise ConfigError(f'{place}: has no "file"; add the name of the file as a string')
    if conditions is not None and not isinstance(conditions, dict):
        raise ConfigError(f"{place}: conditions must be an object, got {type(conditions).__name__}")
    return {"file": file, "conditions": dict(conditions or {})}


class ReadItem(NamedTuple):
    """An item, or the reason why it could not be read."""

    number: int
    item: Item | None = None
    fault: Fault | None = None
    error: UserError | None = None


class _Reader(Dataset[ReadItem]):
    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, number: int) -> ReadItem:
        try:
            return ReadItem(number, self.items.load(number))
        except BadItem as error:
            return ReadItem(number, fault=error.at(self.items.path(number)))
        except AudioError as error:
            path = self.items.path(number)
            return ReadItem(number, fault=Fault(path, "unreadable", str(error).removeprefix(f"{path}: ")))
        except UserError as error:  # raised again where the user sees it, without the worker's traceback
            return ReadItem(number, error=error)


def read_items(items: Items, numbers: Sequence[int], num_workers: int = 0) -> Iterator[ReadItem]:
    """Yield the numbered items in order, read by `num_workers` processes."""
    reader = DataLoader(
        _Reader(items),
        batch_size=None,
        sampler=list(numbers),
        collate_fn=_pass_through,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for entry in reader:
        if entry.error is not None:
            raise entry.error
        yield entry


def _pass_through(entry: object) -> object:
    return entry


def open_items(
    dataset: JsonObject | None,
    generated: str | None,
    shape: AudioShape,
    seed: int,
    limit: int | None,
    paths: PathFilter | None = None,
) -> Items:
    """Open the items of a dataset config, or the files of a folder of generated files that `paths` keeps."""
    if (dataset is None) == (generated is None):
        raise ConfigError(
            "give --dataset-config (a dataset) or --generated (a folder that generate.py wrote), not both"
        )
    if generated is not None:
        return GeneratedItems(generated, shape, limit, paths)
    assert dataset is not None
    return DatasetItems(dataset, shape, seed, limit)
