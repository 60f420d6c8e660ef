"""The items that are attributed, by number: those of a dataset, or generated files with their manifest.

Nothing is drawn anew: no polarity flips, each item once, in the order of the files. What cannot be read is named and
left out, never replaced.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stable_audio_tools.config import AudioError, ConfigError, UserError, load
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.faults import BadItem, Fault
from stable_audio_tools.data.loader import Item, Loader
from stable_audio_tools.data.preencode import dataset_key
from stable_audio_tools.data.sources.latents import as_tensor
from stable_audio_tools.data.transforms import describe_crop, set_channels, take

# Audio; what the diffusion model works on; or what the training data is, as the model config or a flag says.
Form = Literal["audio", "latents", "data"]

_MANIFESTS = ("manifest.jsonl", "prompt_manifest.json")


class AudioShape(NamedTuple):
    """What a model wants its audio to be."""

    sample_size: int
    sample_rate: int
    channels: int


class Items(Protocol):
    """Numbered items; `load` raises AudioError where one cannot be used."""

    faults: list[Fault]  # known before anything is read
    data_key: str  # changes with the files

    def __len__(self) -> int: ...

    def path(self, number: int) -> str:
        """The file, which is the item's line in the list of ids."""

    def key(self, number: int) -> str:
        """What the item's noise depends on: the same on every machine."""

    def load(self, number: int) -> Item: ...

    def form(self, number: int) -> Form:
        """What the item holds."""


class DatasetItems:
    """Each item of a dataset once."""

    def __init__(self, config: Mapping[str, Any], shape: AudioShape, seed: int, limit: int | None = None) -> None:
        loader = create_dataloader_from_config(
            config, 1, shape.sample_size, shape.sample_rate, shape.channels, num_workers=0, shuffle=False, seed=seed
        )
        if not isinstance(loader, Loader):
            raise ConfigError(
                f"dataset_type: attribution needs items that it can name and find again, and a "
                f"{config.get('dataset_type')!r} dataset is a stream; encode it with pre_encode.py and use the latents"
            )
        self.source: Any = loader.dataset
        self.seed = seed
        self.count = len(self.source.groups) if limit is None else min(limit, len(self.source.groups))
        self.faults: list[Fault] = list(self.source.known_faults)
        self.data_key = dataset_key(loader)

    def __len__(self) -> int:
        return self.count

    def path(self, number: int) -> str:
        found: str = self.source.path(number)
        return found

    def key(self, number: int) -> str:
        place = self.source.files.place(number)
        return f"{place.folder.config.id}/{place.relpath}"

    def load(self, number: int) -> Item:
        item: Item = self.source.load(Draw(number, seed=self.seed))
        return item

    def form(self, number: int) -> Form:
        return "data"


class GeneratedItems:
    """Files that a manifest describes; where the latents were kept (`NAME.npy`), they stand for the audio."""

    def __init__(self, folder: str | Path, shape: AudioShape, limit: int | None = None) -> None:
        self.folder, self.shape = Path(folder), shape
        self.records = read_manifest(self.folder)[:limit]
        self.faults: list[Fault] = []
        files = [self._file(number) for number in range(len(self))]
        about = [[record, path.stat().st_size if path.is_file() else None] for record, path in zip(self.records, files)]
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
            try:
                return Item(as_tensor(np.load(path, allow_pickle=False)), info)
            except (OSError, ValueError) as error:
                raise AudioError(f"{path}: no readable latents ({error})") from None
        shape = self.shape
        audio = audio_io.read(path, 0, shape.sample_size, shape.sample_rate).samples
        facts = describe_crop(0, shape.sample_size, audio.shape[-1], shape.sample_rate)
        info = {"seconds_start": 0, "seconds_total": facts.seconds_total, **info, "padding_mask": facts.padding_mask}
        return Item(set_channels(take(audio, 0, shape.sample_size), shape.channels), info)

    def _file(self, number: int) -> Path:
        audio = self.folder / self.records[number]["file"]
        latents = audio.with_suffix(".npy")
        return latents if latents.is_file() else audio


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """`file` and `conditions` of every generated file: `manifest.jsonl`, or a `prompt_manifest.json` with `items`."""
    path = next((folder / name for name in _MANIFESTS if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder}: holds neither {' nor '.join(_MANIFESTS)}, which name the files and their prompts")
    if path.suffix == ".json":
        entries = load(path).get("items", [])
        records = [
            {"file": entry.get("filename"), "conditions": {k: v for k, v in entry.items() if k != "filename"}}
            for entry in entries
        ]
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            records = [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            raise ConfigError(f"{path}: a line is not valid JSON ({error})") from None
    if not records or not all(isinstance(record.get("file"), str) for record in records):
        raise ConfigError(f"{path}: names no files")
    return [{"file": record["file"], "conditions": dict(record.get("conditions") or {})} for record in records]


class Found(NamedTuple):
    """An item that was read, or why it was not."""

    number: int
    item: Item | None = None
    fault: Fault | None = None
    error: UserError | None = None


class _Reader(Dataset[Found]):
    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, number: int) -> Found:
        try:
            return Found(number, self.items.load(number))
        except BadItem as error:
            return Found(number, fault=error.at(self.items.path(number)))
        except AudioError as error:
            path = self.items.path(number)
            return Found(number, fault=Fault(path, "unreadable", str(error).removeprefix(f"{path}: ")))
        except UserError as error:  # raised again where the user sees it, without the worker's traceback
            return Found(number, error=error)


def read_items(items: Items, numbers: Sequence[int], num_workers: int = 0) -> Iterator[Found]:
    """The items of these numbers in their order, read by so many processes."""
    reader = DataLoader(
        _Reader(items),
        batch_size=None,
        sampler=list(numbers),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for found in reader:
        if found.error is not None:
            raise found.error
        yield found


def _as_it_is(found: Any) -> Any:
    return found


def open_items(
    dataset: Mapping[str, Any] | None, generated: str | None, shape: AudioShape, seed: int, limit: int | None
) -> Items:
    """The items of a dataset config, or of a folder of generated files."""
    if (dataset is None) == (generated is None):
        raise ConfigError(
            "give --dataset-config (a dataset) or --generated (a folder that generate.py wrote), not both"
        )
    if generated is not None:
        return GeneratedItems(generated, shape, limit)
    assert dataset is not None
    return DatasetItems(dataset, shape, seed, limit)
