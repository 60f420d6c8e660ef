"""One entry of `datasets`, as scripts that build datasets without JSON construct it."""

from dataclasses import dataclass, field

from stable_audio_tools.data.custom_metadata import MetadataFunction


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
