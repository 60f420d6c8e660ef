"""The arguments that every data source receives, entries of `datasets` for code without JSON, and shared JSON keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field

from stable_audio_tools.data.custom_metadata import CustomMetadata, MetadataFunction
from stable_audio_tools.data.faults import FaultPolicy, OnBadItem
from stable_audio_tools.data.loader import ItemSource, Loader
from stable_audio_tools.data.prompts import Captions, caption_problems


@dataclass
class LocalDatasetConfig:
    """A folder of audio files or of latents."""

    id: str
    path: str
    custom_metadata_fn: MetadataFunction | None = None
    metadata_path: str | None = None  # table whose rows name files of this folder
    only_listed: bool = False  # leave out files that the table does not name
    weight: float = 1.0
    latent_crop_length: int | None = None
    loss_weight: float = 1.0


@dataclass
class LocalWebDatasetConfig:
    """A folder of tar files."""

    id: str
    path: str
    custom_metadata_fn: MetadataFunction | None = None
    urls: list[str] = field(default_factory=list)


@dataclass
class S3DatasetConfig:
    """Tar files below an S3 prefix."""

    id: str
    s3_path: str
    custom_metadata_fn: MetadataFunction | None = None
    profile: str | None = None
    urls: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.s3_path


@dataclass(frozen=True)
class LoaderRequest:
    """The arguments of `create_dataloader_from_config`, beside the dataset config itself."""

    batch_size: int
    sample_size: int  # samples per clip
    sample_rate: int
    audio_channels: int = 2
    num_workers: int = 0
    shuffle: bool = True
    seed: int = 0
    rank: int | None = None  # None: the launcher's, looked up when iteration begins
    world_size: int | None = None

    def with_seed(self, seed: int | None) -> "LoaderRequest":
        """Return the request with the seed of the dataset config, if it sets one."""
        return self if seed is None else replace(self, seed=seed)

    def loader(self, dataset: ItemSource, policy: FaultPolicy, drop_last: bool) -> Loader:
        """Return a loader of items that can be read one by one."""
        return Loader(
            dataset,
            self.batch_size,
            shuffle=self.shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            seed=self.seed,
            policy=policy,
            rank=self.rank,
            world_size=self.world_size,
        )


DropLast = Annotated[bool, Field(description="leave out an incomplete last batch")]
RandomCrop = Annotated[bool, Field(description="crop at a random place; false: at the start")]
MetadataModule = Annotated[
    str | None,
    Field(description="Python file with get_custom_metadata(info, audio) -> dict; an entry's own overrides it"),
]
ExcludePaths = Annotated[str | None, Field(description="text file with one path per line; these files are left out")]
IncludePaths = Annotated[str | None, Field(description="text file with one path per line; only these files are used")]
LoosePaths = Annotated[bool, Field(description="also match path lists by file name, with or without extension")]
BadItem = Annotated[
    OnBadItem,
    Field(description="treatment of a bad item: skip it, raise an error, or skip it and add it to quarantine_file"),
]
QuarantineFile = Annotated[str | None, Field(description="list of bad files, left out at the start of every run")]
MaxBadFraction = Annotated[float, Field(ge=0, le=1, description="stop if more than this fraction of the items is bad")]
MinSeconds = Annotated[float | None, Field(ge=0, description="shorter files are left out")]
MaxSeconds = Annotated[float | None, Field(gt=0, description="longer files are left out")]
Seed = Annotated[int | None, Field(ge=0, description="seed of order and crops; null: the run's seed")]
Weight = Annotated[float, Field(ge=0, description="visits per item and epoch: 2 doubles this folder, 0.5 halves it")]
LossWeight = Annotated[
    float, Field(ge=0, description="weight of its items in the loss of diffusion models; an item's own comes first")
]
Prompts = Annotated[Captions, Field(description="rules that derive prompts from metadata")]
AugmentPhase = Annotated[bool, Field(description="invert the polarity of crops with probability 0.5")]
VolumeNorm = Annotated[bool, Field(description="normalise crops to a loudness drawn from volume_norm_param")]
VolumeNormParam = Annotated[
    Sequence[float], Field(min_length=2, max_length=2, description="loudness in LUFS, and +- dB around it")
]
AllowSilence = Annotated[bool, Field(description="also return crops below -60 dB")]
FolderPath = Annotated[str, Field(min_length=1, description="folder, searched recursively")]
FolderId = Annotated[str, Field(description="name in messages and in path lists (id:relative/path)")]


def metadata_function(own: str | None, common: str | None) -> CustomMetadata | None:
    """Return the metadata function of an entry, or else of the whole dataset."""
    path = own or common
    return CustomMetadata(path) if path else None


def problems(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Yield mistakes in shared keys that their types do not exclude, as (key, message)."""
    if not config.datasets:
        yield "datasets", "expected at least one entry, got an empty list"
    if config.on_bad_item == "quarantine" and config.quarantine_file is None:
        yield "quarantine_file", 'missing; "on_bad_item": "quarantine" writes the list to it'
    for key, text in caption_problems(config.captions):
        yield f"captions.{key}", text
