"""`"dataset_type": "pre_encoded"`: folders of latents (`.npy`, `(d, t)`) with a `.json` of metadata beside each."""

import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data.custom_metadata import ItemInfo, call_custom
from stable_audio_tools.data.draws import Draw, seeded
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy
from stable_audio_tools.data.index import Header
from stable_audio_tools.data.inventory import Inventory
from stable_audio_tools.data.loader import Item, Loader
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.prompts import Captions, add_prompt
from stable_audio_tools.data.sources import request as keys
from stable_audio_tools.data.sources.folders import FileItem, Folders, own_names
from stable_audio_tools.data.sources.request import LoaderRequest, LocalDatasetConfig, metadata_function
from stable_audio_tools.data.transforms import take

logger = logging.getLogger(__name__)

_CropLength = Annotated[int | None, Field(ge=1, description="latent frames per item; null: all of them")]


@dataclass(frozen=True)
class LatentFolder:
    """A folder that `data encode` wrote."""

    path: keys.FolderPath
    id: keys.FolderId = ""
    latent_crop_length: _CropLength = None
    custom_metadata_module: keys.MetadataModule = None
    weight: keys.Weight = 1.0
    loss_weight: keys.LossWeight = 1.0

    def as_config(self, module: str | None) -> LocalDatasetConfig:
        function = metadata_function(self.custom_metadata_module, module)
        return LocalDatasetConfig(
            self.id or Path(self.path).name,
            self.path,
            function,
            weight=self.weight,
            latent_crop_length=self.latent_crop_length,
            loss_weight=self.loss_weight,
        )


class PreEncodedDataset(Dataset[Any]):
    """Crops of latents `(d, t)` with metadata, whose times and mask are adapted to the crop."""

    def __init__(
        self,
        configs: Sequence[LocalDatasetConfig],
        latent_crop_length: int | None = None,
        min_length_sec: float | None = None,
        max_length_sec: float | None = None,
        random_crop: bool = False,
        latent_extension: str = "npy",
        *,
        captions: Captions = Captions(),  # noqa: B008 (immutable)
        paths: PathFilter | None = None,
        seed: int = 0,
    ) -> None:
        self.latent_crop_length, self.random_crop, self.captions, self.seed = (
            latent_crop_length,
            random_crop,
            captions,
            seed,
        )
        self.seconds = (min_length_sec or 0.0, max_length_sec or math.inf)
        self.details = {config.path: _read_details(config.path) for config in configs}
        self.files = Folders(
            configs,
            [latent_extension],
            describe_latents,
            "latents",
            paths=paths,
            unsuitable=self._unsuitable if min_length_sec or max_length_sec else None,
            names=_names_with_source,
            file_list="filelist.txt",
        )
        self.groups, self.weights, self.known_faults = self.files.groups, self.files.weights, self.files.known_faults
        logger.info("%d latents in %s", len(self), ", ".join(config.path for config in configs))

    @property
    def filenames(self) -> list[str]:
        """Return the paths of the items."""
        return [self.path(item) for item in range(len(self))]

    def path(self, item: int) -> str:
        return self.files.place(item).path

    def inventories(self) -> list[Inventory]:
        return self.files.inventories()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        """Return the item, cropped as in epoch 0; raise AudioError if it cannot be used."""
        return self.load(Draw(index, seed=self.seed))

    def load(self, draw: Draw) -> Item:
        """Read one crop with its metadata."""
        place, rng = self.files.place(draw.item), random.Random(draw.number)
        info = read_latent_metadata(place.path)
        stored = _open_latents(Path(place.path))
        mask = padding_mask_of(info, stored.shape[1])
        start, length = self._choose_crop(place, mask, rng)
        latents = as_tensor(stored[:, start : start + length])
        if latents.is_floating_point() and not torch.isfinite(latents).all():
            raise BadItem("not finite", "holds NaN or infinite latents")
        self._describe(info, place, mask, start, length)
        latents = take(latents, 0, length)
        add_prompt(info, self.captions, rng)
        if place.folder.config.loss_weight != 1.0:
            info.setdefault("loss_weight", place.folder.config.loss_weight)
        function = place.folder.config.custom_metadata_fn
        if function is not None:
            with seeded(draw.number):
                info.update(call_custom(function, info, None))
        if info.pop("__reject__", False):
            raise BadItem("rejected", "by get_custom_metadata", lasting=False)
        if (replacement := info.pop("__replace__", None)) is not None:
            latents = replacement
        info["audio"] = latents
        return Item(latents, info)

    def _choose_crop(self, place: FileItem, mask: Tensor, rng: random.Random) -> tuple[int, int]:
        """Return (first frame, frames), within the part without padding if that is long enough."""
        length = place.folder.config.latent_crop_length or self.latent_crop_length
        if length is None:
            return 0, len(mask)
        real = int(mask.nonzero()[-1]) + 1 if mask.any() else 0
        return (rng.randint(0, max(0, real - length)) if self.random_crop else 0), length

    def _describe(self, info: ItemInfo, place: FileItem, mask: Tensor, start: int, length: int) -> None:
        info["latent_filename"] = place.path
        info["padding_mask"] = take(mask, start, length)
        if length == len(mask) and start == 0:
            return
        crop_fractions(info, start, length, len(mask))
        info["latent_crop_length"], info["latent_crop_start"] = length, start
        seconds = self._seconds_per_frame(info, place, mask)
        if seconds is not None and "seconds_start" in info:
            info["seconds_start"] = math.floor(info["seconds_start"] + start * seconds)

    def _seconds_per_frame(self, info: ItemInfo, place: FileItem, mask: Tensor) -> float | None:
        """Return the duration of a latent frame, from the encoder's notes or from a file encoded whole."""
        details = self.details[place.folder.config.path]
        rate = info.get("sample_rate") or details.get("sample_rate")
        if rate and details.get("sample_size"):
            return float(details["sample_size"]) / len(mask) / float(rate)
        whole = list(info.get("timestamps", ())) == [0, 1]
        frames = int(mask.sum())
        return float(info["seconds_total"]) / frames if whole and frames and "seconds_total" in info else None

    def _unsuitable(self, place: FileItem) -> Fault | None:
        try:
            seconds = float(read_latent_metadata(place.path)["seconds_total"])
        except (BadItem, KeyError, TypeError, ValueError):
            return Fault(place.path, "bad metadata", "its .json gives no seconds_total")
        least, most = self.seconds
        if least <= seconds <= most:
            return None
        return Fault(place.path, "filtered", f"{seconds:g} s is outside min_length_sec and max_length_sec")


def read_latent_metadata(path: str | Path) -> ItemInfo:
    """Read the `.json` beside a file of latents."""
    beside = Path(path).with_suffix(".json")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadItem("bad metadata", f"{beside} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadItem("bad metadata", f"{beside} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BadItem("bad metadata", f"{beside} holds no JSON object, but {type(found).__name__}")
    return found


def describe_latents(path: Path) -> Header:
    """Return frames and channels from the header of the file."""
    shape = _open_latents(path).shape
    return Header(shape[1], 0, shape[0])


def _open_latents(path: Path) -> NDArray[Any]:
    """Open `(d, t)` latents as a memory map."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, OverflowError, SyntaxError) as error:
        raise AudioError(f"{path}: no readable latents ({error})") from None
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "fiu":
        raise AudioError(f"{path}: holds no array of numbers")
    if stored.ndim == 3 and stored.shape[0] == 1:
        stored = stored[0]
    if stored.ndim != 2 or 0 in stored.shape:
        raise AudioError(f"{path}: expected latents of shape (channels, frames), got {stored.shape}")
    return stored


def as_tensor(values: NDArray[Any]) -> Tensor:
    """Return a copy; half precision becomes float32, tokens remain integers."""
    return torch.from_numpy(np.array(values, np.float32 if values.dtype.kind == "f" else np.int64))


def padding_mask_of(info: ItemInfo, frames: int) -> Tensor:
    """Return the mask `(t,)` in the metadata; all ones without it."""
    given = info.get("padding_mask")
    if given is None:
        return torch.ones(frames)
    try:
        mask = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise BadItem("bad metadata", f"padding_mask is not a list of numbers: {error}") from None
    if len(mask) != frames:
        raise BadItem("bad metadata", f"padding_mask has {len(mask)} entries for {frames} latent frames")
    return mask


def crop_fractions(info: dict[str, Any], start: int, length: int, total: int) -> None:
    """Convert the `loss_fractions` of `total` latent frames to those of a crop, in place."""
    if "loss_fractions" in info:
        moved = [[(edge * total - start) / length for edge in pair] for pair in info["loss_fractions"]]
        info["loss_fractions"] = [(max(0.0, a), min(1.0, b)) for a, b in moved if b > 0 and a < 1]


def _read_details(root: str) -> ItemInfo:
    """Read the encoder's notes about the whole folder."""
    try:
        found = json.loads(Path(root, "details.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _names_with_source(place: FileItem) -> Iterator[tuple[str, str | None]]:
    """Yield the file's own names, and those of the audio that it was encoded from."""
    yield from own_names(place)
    try:
        info = read_latent_metadata(place.path)
    except BadItem:
        return
    if isinstance(info.get("path"), str):
        yield info["path"], info["relpath"] if isinstance(info.get("relpath"), str) else None


def _problems(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    yield from keys.problems(config)
    lengths = {folder.latent_crop_length or config.latent_crop_length for folder in config.datasets}
    if len(lengths) > 1:
        yield (
            "latent_crop_length",
            f"all items of a batch need one length, but the folders have {sorted(map(str, lengths))}",
        )


@register(
    "dataset",
    "pre_encoded",
    ignored=("augment_phase", "epoch_steps", "pre_encoded"),
    facts=lambda config: {"holds": "latents"},
    check=_problems,
)
def pre_encoded(
    datasets: Annotated[list[LatentFolder], Field(description="folders of latents")],
    latent_crop_length: _CropLength = None,
    random_crop: keys.RandomCrop = False,
    min_length_sec: keys.MinSeconds = None,
    max_length_sec: keys.MaxSeconds = None,
    latent_extension: Annotated[str, Field(min_length=1, description="of the files that hold latents")] = "npy",
    drop_last: keys.DropLast = True,
    custom_metadata_module: keys.MetadataModule = None,
    captions: keys.Prompts = Captions(),  # noqa: B008
    exclude_paths_file: keys.ExcludePaths = None,
    include_paths_file: keys.IncludePaths = None,
    loose_path_matching: keys.LoosePaths = False,
    on_bad_item: keys.BadItem = "skip",
    quarantine_file: keys.QuarantineFile = None,
    max_bad_fraction: keys.MaxBadFraction = 0.2,
    seed: keys.Seed = None,
    *,
    request: Runtime[LoaderRequest],
) -> Loader:
    """Folders of latents that were encoded before training."""
    request = request.with_seed(seed)
    dataset = PreEncodedDataset(
        [folder.as_config(custom_metadata_module) for folder in datasets],
        latent_crop_length,
        min_length_sec,
        max_length_sec,
        random_crop,
        latent_extension,
        captions=captions,
        paths=PathFilter(exclude_paths_file, include_paths_file, quarantine_file, loose_path_matching),
        seed=request.seed,
    )
    return request.loader(dataset, FaultPolicy(on_bad_item, quarantine_file, max_bad_fraction), drop_last)
