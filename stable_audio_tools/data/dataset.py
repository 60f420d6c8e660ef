"""From a dataset JSON to batches: `create_dataloader_from_config`, and the published names around it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.core.config import Part, components, validate
from stable_audio_tools.core.config.parts import examine_body
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.published import (
    AUDIO_KEYS,
    audio_decoder,
    get_dbmax,
    get_latent_filenames,
    is_silence_audio,
    is_valid_sample,
    keyword_scandir,
    log_and_continue,
    npy_decoder,
    remove_long_silence,
)
from stable_audio_tools.data.scanning import fast_scandir, get_audio_filenames
from stable_audio_tools.data.sources.audio_dir import SampleDataset
from stable_audio_tools.data.sources.configs import LocalDatasetConfig, LocalWebDatasetConfig, S3DatasetConfig
from stable_audio_tools.data.sources.latents import PreEncodedDataset
from stable_audio_tools.data.sources.request import LoaderRequest
from stable_audio_tools.data.sources.webdataset import WebDatasetDataLoader
from stable_audio_tools.data.transforms import is_silence

__all__ = [
    "AUDIO_KEYS",
    "LocalDatasetConfig",
    "LocalWebDatasetConfig",
    "PreEncodedDataset",
    "S3DatasetConfig",
    "SampleDataset",
    "WebDatasetDataLoader",
    "audio_decoder",
    "check_dataset_config",
    "collation_fn",
    "create_dataloader_from_config",
    "fast_scandir",
    "get_audio_filenames",
    "get_dbmax",
    "get_latent_filenames",
    "is_silence",
    "is_silence_audio",
    "is_valid_sample",
    "keyword_scandir",
    "log_and_continue",
    "npy_decoder",
    "remove_long_silence",
]


Contents = Literal["audio", "latents"]


def check_dataset_config(dataset_config: Mapping[str, Any], path: str = "dataset") -> Part:
    """Check a dataset config without looking at any file; every mistake is in the one ConfigError."""
    if not isinstance(dataset_config, Mapping):
        raise ConfigError(f"{path}: expected a JSON object, got {type(dataset_config).__name__}")
    known, tag = components("dataset"), dataset_config.get("dataset_type")
    if tag is None:
        raise ConfigError(f"{path}.dataset_type: missing; it is one of {', '.join(sorted(known))}")
    if not isinstance(tag, str) or tag not in known:
        raise ConfigError(f"{path}.dataset_type: no dataset type named {tag!r}; {nearest(str(tag), known)}")
    return validate("dataset", _body(dataset_config), path, tag)


def contents_of(dataset_config: Mapping[str, Any]) -> Contents | None:
    """Return what the items of a dataset are, by its type's facts; None for a config with mistakes."""
    known, tag = components("dataset"), dataset_config.get("dataset_type")
    if not isinstance(tag, str) or tag not in known:
        return None
    part, _ = examine_body("dataset", tag, _body(dataset_config), "dataset")
    contents: Contents | None = None if part is None else part.facts.get("holds", "audio")
    return contents


def _body(dataset_config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dataset_config.items() if key not in ("dataset_type", "$schema")}


def create_dataloader_from_config(
    dataset_config: Mapping[str, Any],
    batch_size: int,
    sample_size: int,
    sample_rate: int,
    audio_channels: int = 2,
    num_workers: int = 4,
    shuffle: bool = True,
    *,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> Any:
    """Batches `(audio (b, c, n), metadata)`, an epoch per iteration; the loader has `state_dict` and `load_state_dict`.

    Order and crops depend on `seed` and the epoch alone, which must be the same in all processes of a run.
    """
    request = LoaderRequest(
        batch_size, sample_size, sample_rate, audio_channels, num_workers, shuffle, seed, rank, world_size
    )
    return check_dataset_config(dataset_config).build(request=request)


def collation_fn(samples: Sequence[Sequence[Any]]) -> list[Any]:
    """Columns of `(audio, info)` pairs: tensors and arrays are stacked, numbers become an array, the rest a tuple."""
    columns: list[Any] = []
    for column in zip(*samples):
        first = column[0]
        if isinstance(first, Tensor):
            columns.append(torch.stack(column))
        elif isinstance(first, np.ndarray | int | float):
            columns.append(np.array(column))
        else:
            columns.append(column)
    return columns
