"""Datasets of mel bands: audio files cut into slices, written to a folder and uploaded to huggingface.co.

A slice has as many frames as an image is wide. The last slice of a file ends where the file does and overlaps the one
before it; a file shorter than a slice is filled up with silence, which the padding mask marks. Only slices without
sound are left out.
"""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.core.packages import require
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.clips import Crop
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy
from stable_audio_tools.data.inventory import Inventory
from stable_audio_tools.data.loader import Item, Loader
from stable_audio_tools.data.metadata import read_sidecar
from stable_audio_tools.data.resampling import resampled_length
from stable_audio_tools.data.sources.audio_dir import SampleDataset
from stable_audio_tools.data.sources.request import LocalDatasetConfig
from stable_audio_tools.data.transforms import SILENCE, take
from stable_audio_tools.latents.writing import (
    LatentStore,
    Layout,
    Outcome,
    Share,
    dataset_key,
    left_out_list,
    pre_encode,
)
from stable_audio_tools.mel import arrow
from stable_audio_tools.mel.pretransform import MelPretransform, Node
from stable_audio_tools.models.factory import create_pretransform_from_config


@dataclass(frozen=True)
class Slice:
    """A file by its number, and the slice of it."""

    file: int
    number: int


class MelSlices:
    """Slices of all audio files below a folder, as items that any process can read one by one."""

    def __init__(self, folder: str, pretransform: MelPretransform, frames: int) -> None:
        self.pretransform = pretransform
        self.frames = frames
        self.samples = frames * pretransform.downsampling_ratio
        rate, channels = pretransform.sample_rate, pretransform.io_channels
        config = LocalDatasetConfig("audio", folder)
        self.source = SampleDataset(
            [config], self.samples, rate, random_crop=False, force_channels=channels, augment_phase=False
        )
        self.known_faults = self.source.known_faults
        counts = [self._count(file) for file in range(len(self.source))]
        self.first = np.cumsum([0, *counts])  # the number of each file's first slice
        self.groups: NDArray[np.int64] = np.zeros(int(self.first[-1]), np.int64)
        self.weights: NDArray[np.float64] = np.ones(1)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def key(self) -> str:
        """Return a key of the files, their sizes, their times and their order."""
        return dataset_key(SimpleNamespace(dataset=self.source))

    def find(self, item: int) -> Slice:
        file = int(np.searchsorted(self.first, item, side="right")) - 1
        return Slice(file, item - int(self.first[file]))

    def path(self, item: int) -> str:
        """Return the file of an item with the number of the slice."""
        found = self.find(item)
        return f"{self.source.path(found.file)}#{found.number}"

    def inventories(self) -> list[Inventory]:
        return self.source.inventories()

    def load(self, draw: Draw) -> Item:
        """Bands (d, t) of one slice with its metadata; BadItem if it is silent."""
        found = self.find(draw.item)
        place = self.source.files.place(found.file)
        total = self._total(found.file)
        start = min(found.number * self.samples, max(0, total - self.samples))
        read = audio_io.read(place.path, start, self.samples, self.pretransform.sample_rate).samples
        audio = self.source.clips.augment(take(read, 0, self.samples), random.Random(draw.number))
        peak = audio.abs().max().item()  # NaN where any sample is
        if not np.isfinite(peak):
            raise BadItem("not finite", "holds NaN or infinite samples")
        if peak < SILENCE:
            raise BadItem("silent", f"slice {found.number} is below -60 dB")
        crop = Crop(audio, start, total)
        info = self.source.clips.describe(
            read_sidecar(place.path), crop, place.path, place.relpath, random.Random(draw.number)
        )
        return Item(self.encode(audio), {**info, "slice": found.number})

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        bands: Tensor = self.pretransform.encode(audio[None])[0]
        return bands

    def _count(self, file: int) -> int:
        return max(1, -(-self._total(file) // self.samples))

    def _total(self, file: int) -> int:
        place = self.source.files.place(file)
        index, row = place.folder.index, place.row
        return resampled_length(int(index.frames[row]), int(index.rates[row]), self.pretransform.sample_rate)


logger = logging.getLogger(__name__)

PLAN = "plan.json"


@dataclass(frozen=True)
class ImageSettings:
    """Settings of a dataset of slices; `pretransform` is the node of a config."""

    input_dir: str
    output_dir: str
    pretransform: Node
    sample_rate: int
    frames: int
    format: Literal["latents", "arrow"] = "latents"
    half: bool = False
    max_examples: int | None = None
    num_workers: int = 0
    slices_per_shard: int = 128  # of an Arrow dataset


@dataclass
class DatasetCounts:
    """The slices that a run wrote, kept and left out."""

    written: int = 0
    kept: int = 0
    left_out: str = ""  # a line for each slice, and for each file that could not be read

    @property
    def num_left_out(self) -> int:
        return self.left_out.count("\n")


def make_dataset(settings: ImageSettings) -> DatasetCounts:
    """Write this process's share; existing slices are kept."""
    slices = open_slices(settings)
    logger.info("%d slices of %d frames in %s", len(slices), settings.frames, settings.input_dir)
    done = _write_latents(settings, slices) if settings.format == "latents" else _write_arrow(settings, slices)
    listing = Path(settings.output_dir, f"left_out_{rank()}.txt")
    if done.left_out:
        write_text(listing, done.left_out)
        logger.warning("%d slices or files were left out; see %s", done.num_left_out, listing)
    else:
        listing.unlink(missing_ok=True)
    if not done.written and not done.kept:
        raise AudioError(f"{settings.input_dir}: not one slice could be used; see {listing}")
    return done


def open_slices(settings: ImageSettings) -> MelSlices:
    """Return the spectrogram slices of a folder of audio."""
    pretransform = create_pretransform_from_config(settings.pretransform, settings.sample_rate)
    assert isinstance(pretransform, MelPretransform)
    return MelSlices(settings.input_dir, pretransform, settings.frames)


def _resume(settings: ImageSettings, slices: MelSlices) -> dict[str, object]:
    """Return the settings that must not change between the runs that fill one folder."""
    return {
        "the mel transform": settings.pretransform["config"],
        "the files of the dataset": slices.key,
        "sample_rate": settings.sample_rate,
        "frames": settings.frames,
        "half precision": settings.half,
    }


# ------------------------------------------------------------------ our layout


def _write_latents(settings: ImageSettings, slices: MelSlices) -> DatasetCounts:
    details = {
        "pretransform": settings.pretransform,
        "sample_size": slices.samples,
        "sample_rate": settings.sample_rate,
        "downsampling_ratio": slices.pretransform.downsampling_ratio,
        "resume": _resume(settings, slices),
    }
    store = LatentStore(settings.output_dir, details, Layout(world_size(), 1))
    loader = Loader(slices, 1, shuffle=False, rank=0, world_size=1, policy=FaultPolicy(max_bad_fraction=1.0))
    share = Share(rank(), world_size(), 1, settings.num_workers, settings.max_examples)

    def keep(bands: Tensor, seeds: Sequence[int]) -> Tensor:  # the workers computed the bands
        return bands.half() if settings.half else bands

    outcome, total = Outcome(), len(range(rank(), settings.max_examples or len(slices), world_size()))
    with progress_bar("cutting", min(total, len(slices))) as show:
        for outcome in pre_encode(loader, store, keep, share):
            show(outcome.encoded + outcome.kept + outcome.left_out)
    faults = loader.report.faults if rank() == 0 else loader.report.epoch
    return DatasetCounts(outcome.encoded, outcome.kept, left_out_list(faults))


# ------------------------------------------------------------------ Arrow


def _write_arrow(settings: ImageSettings, slices: MelSlices) -> DatasetCounts:
    """Write shards of neighbouring slices; existing shards are complete, and are kept."""
    if world_size() > 1:
        raise ConfigError("--format arrow is written by one process with several workers; start it without a launcher")
    require("pyarrow", extra="parquet")
    root, total = Path(settings.output_dir), min(len(slices), settings.max_examples or len(slices))
    _agree(root, {**_resume(settings, slices), "slices": total})
    shards = _ArrowShards(slices, root, total, settings.slices_per_shard)
    missing = [number for number in range(len(shards)) if not shards.path(number).exists()]
    done = DatasetCounts(
        kept=sum(arrow.count_rows(shards.path(number)) for number in {*range(len(shards))} - {*missing})
    )
    written = DataLoader(
        shards,
        batch_size=None,
        sampler=missing,
        num_workers=settings.num_workers,
        collate_fn=_unchanged,  # type: ignore[arg-type]  # without batches it receives single results
    )
    with progress_bar("cutting", len(missing)) as show:
        for number, count in enumerate(written):
            if isinstance(count, UserError):
                raise count
            done.written += count
            show(number + 1)
    names = [shards.path(number).name for number in range(len(shards))]
    arrow.finish_dataset(root, names, arrow.column_of(slices.pretransform.transform), _shape(slices), slices.key)
    lists = [path for number in range(len(shards)) if (path := shards.left_out(number)).exists()]
    done.left_out = left_out_list(slices.known_faults) + "".join(path.read_text(encoding="utf-8") for path in lists)
    return done


def _unchanged(written: int | UserError) -> int | UserError:
    return written


def _agree(root: Path, plan: dict[str, object]) -> None:
    """Write the plan of a new dataset, or check that it equals the plan of the existing one."""
    path = root / PLAN
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise ConfigError(f"{root}: is not empty and holds no {PLAN} of an earlier run; choose an empty folder")
        write_text(path, json.dumps(plan, indent=2) + "\n")
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in plan if old.get(key) != json.loads(json.dumps(plan[key]))]
    if changed == ["slices"]:
        raise ConfigError(
            f"{root}: was begun with {old.get('slices')} slices, and now there are {plan['slices']}; a folder of "
            "--format arrow is not extended: continue with the same --max-examples, or choose another folder"
        )
    if changed:
        raise ConfigError(
            f"{root}: was begun with another value of {', '.join(changed)}; continue with the same, or choose another "
            "folder"
        )


def _shape(slices: MelSlices) -> tuple[int, int, int]:
    channels = slices.pretransform.io_channels
    return channels, slices.pretransform.encoded_channels // channels, slices.frames


class _ArrowShards(Dataset[int | UserError]):
    """Shards by number. Reading one writes it, and returns its number of slices or the error."""

    def __init__(self, slices: MelSlices, root: Path, total: int, per_shard: int) -> None:
        self.slices, self.root, self.total, self.per_shard = slices, root, total, per_shard

    def __len__(self) -> int:
        return -(-self.total // self.per_shard)

    def path(self, number: int) -> Path:
        return self.root / "train" / arrow.shard_name(number, len(self))

    def left_out(self, number: int) -> Path:
        """Return the list of a shard's slices that were left out; later runs do not read the slices again."""
        return self.root / "left_out" / f"{number:05d}.txt"

    def __getitem__(self, number: int) -> int | UserError:
        try:
            transform = self.slices.pretransform.transform
            return arrow.write_shard(self.path(number), self._rows(number), transform, _shape(self.slices))
        except UserError as error:  # raised again where the user sees it, without the worker's traceback
            return error

    def _rows(self, number: int) -> Iterator[arrow.Row]:
        faults: list[Fault] = []
        for item in range(number * self.per_shard, min((number + 1) * self.per_shard, self.total)):
            try:
                bands, info = self.slices.load(Draw(item))
            except BadItem as error:
                faults.append(error.at(self.slices.path(item)))
            except AudioError as error:
                faults.append(Fault(self.slices.path(item), "unreadable", str(error)))
            else:
                yield arrow.Row(bands, str(info["path"]), int(info["slice"]))
        if faults:
            write_text(self.left_out(number), left_out_list(faults))


def upload_dataset(folder: str | Path, name: str) -> str:
    """Upload a folder to the dataset repository `owner/name`, created if missing -> its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, repo_type="dataset")
    except HFValidationError:
        raise UserError(f"--push-to-hub: expected a name of the form 'owner/dataset', got {name!r}") from None
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: not uploaded ({reason}); {folder} is complete, log in with: hf auth login, and run again"
        ) from None
    return f"https://huggingface.co/datasets/{name}"
