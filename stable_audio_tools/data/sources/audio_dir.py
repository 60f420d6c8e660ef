"""`"dataset_type": "audio_dir"`: folders of audio files; each visit decodes one crop."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch.utils.data import Dataset

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io, decoders
from stable_audio_tools.data.clips import ClipMaker, Crop
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.faults import Fault, FaultPolicy
from stable_audio_tools.data.index import Header
from stable_audio_tools.data.inventory import Inventory
from stable_audio_tools.data.loader import Item, Loader
from stable_audio_tools.data.metadata import read_sidecar
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.prompts import Captions
from stable_audio_tools.data.resampling import resampled_length
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS
from stable_audio_tools.data.sources import request as keys
from stable_audio_tools.data.sources.folders import FileItem, Folders
from stable_audio_tools.data.sources.request import LoaderRequest, LocalDatasetConfig, metadata_function

logger = logging.getLogger(__name__)

SHORTEST_SECONDS = 0.01
_CHANNELS = {"mono": 1, "stereo": 2}


@dataclass(frozen=True)
class AudioFolder:
    """A folder of audio files, with captions beside them or in a table."""

    path: keys.FolderPath
    id: keys.FolderId = ""
    metadata_path: Annotated[
        str | None, Field(description="table (.jsonl .json .csv .tsv .parquet) whose rows name the files")
    ] = None
    only_listed: Annotated[bool, Field(description="use only files that the table names")] = False
    custom_metadata_module: keys.MetadataModule = None
    weight: keys.Weight = 1.0
    loss_weight: keys.LossWeight = 1.0

    def as_config(self, module: str | None) -> LocalDatasetConfig:
        function = metadata_function(self.custom_metadata_module, module)
        return LocalDatasetConfig(
            self.id or Path(self.path).name,
            self.path,
            function,
            self.metadata_path,
            self.only_listed,
            self.weight,
            loss_weight=self.loss_weight,
        )


class SampleDataset(Dataset[Any]):
    """Crops of audio files `(c, n)` in [-1, 1] with their metadata. `dataset[i]` crops as in epoch 0."""

    def __init__(
        self,
        configs: Sequence[LocalDatasetConfig],
        sample_size: int = 65536,
        sample_rate: int = 48000,
        keywords: Sequence[str] | None = None,
        random_crop: bool = True,
        force_channels: str | int = "stereo",
        *,
        augment_phase: bool = True,
        volume_norm: Sequence[float] | None = None,
        allow_silence: bool = False,
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        captions: Captions = Captions(),  # noqa: B008 (immutable)
        paths: PathFilter | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(force_channels, str) and force_channels not in _CHANNELS:
            raise ValueError(f"force_channels: expected 'mono', 'stereo' or a number, got {force_channels!r}")
        self.clips = ClipMaker(
            sample_size,
            sample_rate,
            _CHANNELS[force_channels] if isinstance(force_channels, str) else force_channels,
            random_crop=random_crop,
            augment_phase=augment_phase,
            volume_norm=volume_norm,
            allow_silence=allow_silence,
            captions=captions,
        )
        self.seed = seed
        self.seconds = (min_seconds or 0.0, max_seconds or float("inf"))
        self.files = Folders(
            configs,
            SCANNED_EXTENSIONS,
            describe_audio,
            index_kind(),
            keywords=keywords,
            paths=paths,
            unsuitable=self._unsuitable,
        )
        self.groups, self.weights, self.known_faults = self.files.groups, self.files.weights, self.files.known_faults
        logger.info("%d audio files in %s", len(self), ", ".join(config.path for config in configs))

    @property
    def filenames(self) -> list[str]:
        """Return the paths of the items."""
        return [self.path(item) for item in range(len(self))]

    @property
    def root_paths(self) -> list[str]:
        return [folder.config.path for folder in self.files.folders]

    def path(self, item: int) -> str:
        return self.files.place(item).path

    def inventories(self) -> list[Inventory]:
        return self.files.inventories()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        """Return the item, or the next usable one; raise AudioError if there is none."""
        reason: AudioError | None = None
        for offset in range(len(self)):
            item = (index + offset) % len(self)
            try:
                return self.load(Draw(item, seed=self.seed))
            except AudioError as error:
                reason = reason or error
                logger.warning("left out: %s (%s)", self.path(item), error)
        raise AudioError(f"none of {len(self)} files can be used; first: {reason}")

    def load(self, draw: Draw) -> Item:
        """Read one crop with its metadata."""
        began = time.perf_counter()
        place, rng = self.files.place(draw.item), random.Random(draw.number)
        crop = self._cut(place, rng)
        clip = self.clips.augment(crop.audio, rng)
        info = read_sidecar(place.path)
        if place.folder.table is not None:
            info.update(place.folder.table.row(place.row, rng.getrandbits(32)))
        info = self.clips.describe(info, crop, place.path, place.relpath, rng)
        if place.folder.config.loss_weight != 1.0:
            info.setdefault("loss_weight", place.folder.config.loss_weight)
        info["load_time"] = time.perf_counter() - began
        return self.clips.apply_custom(place.folder.config.custom_metadata_fn, info, clip, crop.start, draw.number)

    def _cut(self, place: FileItem, rng: random.Random) -> Crop:
        index, row, rate = place.folder.index, place.row, self.clips.sample_rate
        total = resampled_length(int(index.frames[row]), int(index.rates[row]), rate)
        return self.clips.cut(lambda start, length: audio_io.read(place.path, start, length, rate).samples, total, rng)

    def _unsuitable(self, place: FileItem) -> Fault | None:
        frames, rate = int(place.folder.index.frames[place.row]), int(place.folder.index.rates[place.row])
        if rate == 0:
            foreign = Path(place.relpath).suffix.lower() in decoders.FFMPEG_SUFFIXES and not decoders.has_ffmpeg()
            return Fault(place.path, "filtered", "needs ffmpeg, which is not installed") if foreign else None
        seconds = frames / rate
        if seconds < SHORTEST_SECONDS:
            return Fault(place.path, "short", f"{frames} samples")
        least, most = self.seconds
        if not least <= seconds <= most:
            return Fault(place.path, "filtered", f"{seconds:.1f} s is outside min_length_sec and max_length_sec")
        return None


def index_kind() -> str:
    """Return the cache key of headers, which depends on the available decoders."""
    return "audio" if decoders.has_ffmpeg() else "audio without ffmpeg"


def describe_audio(path: Path) -> Header:
    """Return length, rate and channels of a complete file."""
    about = audio_io.info(path)
    audio_io.check_end(path, about)
    return Header(about.frames, about.sample_rate, about.channels)


_MEANT_FOR_TARS = (
    "epoch_steps",
    "latent_crop_length",
    "latent_extension",
    "max_silence_duration",
    "pre_encoded",
    "remove_silence",
    "resampled_shards",
    "silence_threshold",
)


@register("dataset", "audio_dir", ignored=_MEANT_FOR_TARS, facts=lambda config: {"holds": "audio"}, check=keys.problems)
def audio_dir(
    datasets: Annotated[list[AudioFolder], Field(description="folders of audio files")],
    random_crop: keys.RandomCrop = True,
    drop_last: keys.DropLast = True,
    custom_metadata_module: keys.MetadataModule = None,
    captions: keys.Prompts = Captions(),  # noqa: B008
    augment_phase: keys.AugmentPhase = True,
    volume_norm: keys.VolumeNorm = False,
    volume_norm_param: keys.VolumeNormParam = (-16, 2),
    allow_silence: keys.AllowSilence = False,
    min_length_sec: keys.MinSeconds = None,
    max_length_sec: keys.MaxSeconds = None,
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
    """Folders of audio files (wav, flac, mp3, ogg, opus, aif; m4a and the like with ffmpeg)."""
    request = request.with_seed(seed)
    dataset = SampleDataset(
        [folder.as_config(custom_metadata_module) for folder in datasets],
        request.sample_size,
        request.sample_rate,
        random_crop=random_crop,
        force_channels=request.audio_channels,
        augment_phase=augment_phase,
        volume_norm=volume_norm_param if volume_norm else None,
        allow_silence=allow_silence,
        min_seconds=min_length_sec,
        max_seconds=max_length_sec,
        captions=captions,
        paths=PathFilter(exclude_paths_file, include_paths_file, quarantine_file, loose_path_matching),
        seed=request.seed,
    )
    return request.loader(dataset, FaultPolicy(on_bad_item, quarantine_file, max_bad_fraction), drop_last)
