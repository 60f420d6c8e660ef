"""Batches from a dataset JSON: `create_dataloader_from_config`, and published helpers for other code."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.core.config import Part, components, load, validate
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.parts import examine_body
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data import transforms
from stable_audio_tools.data.loader import BatchLoader
from stable_audio_tools.data.scanning import fast_scandir, get_audio_filenames, holds_keyword
from stable_audio_tools.data.sources.audio_dir import SampleDataset
from stable_audio_tools.data.sources.latents import PreEncodedDataset
from stable_audio_tools.data.sources.request import (
    LoaderRequest,
    LocalDatasetConfig,
    LocalWebDatasetConfig,
    S3DatasetConfig,
)
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


DatasetConfig = Mapping[str, Any]  # a dataset JSON
Contents = Literal["audio", "latents"]


def check_dataset_config(dataset_config: DatasetConfig, path: str = "dataset") -> Part:
    """Check a dataset config without opening any file; one ConfigError lists every mistake."""
    if not isinstance(dataset_config, Mapping):
        raise ConfigError(f"{path}: expected a JSON object, got {type(dataset_config).__name__}")
    known, tag = components("dataset"), dataset_config.get("dataset_type")
    if tag is None:
        raise ConfigError(f"{path}.dataset_type: missing; it is one of {', '.join(sorted(known))}")
    if not isinstance(tag, str) or tag not in known:
        raise ConfigError(f"{path}.dataset_type: no dataset type named {tag!r}; {nearest(str(tag), known)}")
    return validate("dataset", _body(dataset_config), path, tag)


_PATH_KEYS = (
    "path",
    "metadata_path",
    "custom_metadata_module",
    "include_paths_file",
    "exclude_paths_file",
    "quarantine_file",
)


def load_dataset_config(path: str | Path) -> JsonObject:
    """Read a dataset config; a relative path in it that does not exist here may be relative to the config's folder."""
    config = load(path)
    folder = Path(path).parent
    entries = config.get("datasets")
    for record in (config, *(entries if isinstance(entries, list) else ())):
        if not isinstance(record, dict):
            continue
        for key in _PATH_KEYS:
            value = record.get(key)
            if isinstance(value, str) and value and not Path(value).exists() and (folder / value).exists():
                record[key] = str(folder / value)
    return config


def contents_of(dataset_config: DatasetConfig) -> Contents | None:
    """Return whether a dataset holds audio or latents; None for a config with mistakes."""
    known, tag = components("dataset"), dataset_config.get("dataset_type")
    if not isinstance(tag, str) or tag not in known:
        return None
    part, _ = examine_body("dataset", tag, _body(dataset_config), "dataset")
    contents: Contents | None = None if part is None else part.facts.get("holds", "audio")
    return contents


def _body(dataset_config: DatasetConfig) -> dict[str, Any]:
    return {key: value for key, value in dataset_config.items() if key not in ("dataset_type", "$schema")}


def create_dataloader_from_config(
    dataset_config: DatasetConfig,
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
) -> BatchLoader:
    """Return a loader of batches `(audio (b, c, n), metadata)`, an epoch per iteration.

    Order and crops depend only on `seed` and the epoch, which must be the same in all processes of a run.
    """
    request = LoaderRequest(
        batch_size, sample_size, sample_rate, audio_channels, num_workers, shuffle, seed, rank, world_size
    )
    loader: BatchLoader = check_dataset_config(dataset_config).build(request=request)
    return loader


def collation_fn(samples: Sequence[Sequence[object]]) -> list[object]:
    """Collate `(audio, info)` pairs: stack tensors and arrays, put numbers into an array, leave the rest a tuple."""
    columns: list[object] = []
    for column in zip(*samples):
        first = column[0]
        if isinstance(first, Tensor):
            columns.append(torch.stack(column))
        elif isinstance(first, np.ndarray | int | float):
            columns.append(np.array(column))
        else:
            columns.append(column)
    return columns


logger = logging.getLogger(__name__)

AUDIO_KEYS = ("flac", "wav", "mp3", "m4a", "ogg", "opus")  # suffixes of the audio in tar files


def keyword_scandir(dir: str, ext: Sequence[str], keywords: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (folders, files with one of the extensions whose name contains a keyword) below `dir`."""
    folders, files = fast_scandir(dir, ext)
    return folders, [file for file in files if holds_keyword(Path(file).name, keywords)]


def get_latent_filenames(paths: str | Sequence[str], extensions: Sequence[str] = ("npy",)) -> list[str]:
    """Return files of latents below the folders; a folder's `filelist.txt` replaces the search."""
    names: list[str] = []
    for root in [paths] if isinstance(paths, str) else paths:
        listed = Path(root, "filelist.txt")
        if listed.exists():
            names += [str(Path(root, line.strip())) for line in listed.read_text().splitlines() if line.strip()]
        else:
            names += fast_scandir(root, extensions)[1]
    return names


def get_dbmax(audio: Tensor) -> float:
    """Return the peak of a clip in dB of full scale."""
    return float(20 * torch.log10(audio.abs().max()))


def is_silence_audio(audio: Tensor, silence_threshold: float = 0.01, max_silence_ratio: float = 0.3) -> bool:
    """Return whether more than this share of any channel (c, n) stays below the threshold."""
    silent = (audio.abs() < silence_threshold).float().mean(dim=1)
    return bool((silent > max_silence_ratio).any())


def is_valid_sample(sample: Mapping[str, Any]) -> bool:
    """Return whether a decoded tar entry has metadata and audio that is neither silent nor rejected by its metadata."""
    if "json" not in sample or "audio" not in sample:
        return False
    is_audible = bool(sample.get("__pre_encoded__")) or not is_silence(sample["audio"])
    return is_audible and not sample["json"].get("__reject__", False)


def log_and_continue(exn: Exception) -> bool:
    """Log a fault of a tar stream and continue: a handler for webdataset."""
    logger.warning("webdataset: %r; the item is left out", exn)
    return True


def remove_long_silence(
    audio: Tensor,
    sample_rate: int,
    silence_threshold: Sequence[float] = (0.01, 0.5),
    max_silence_duration: float = 0.25,
) -> Tensor:
    """Shorten long silences of mono audio (1, n); `silence_threshold` is (level, remaining seconds)."""
    level, kept_seconds = silence_threshold
    return transforms.remove_long_silence(audio, sample_rate, level, kept_seconds, max_silence_duration)


def audio_decoder(key: str, value: bytes) -> tuple[Tensor, int] | None:
    """Decode audio (c, n) and its sample rate from the bytes of a tar entry; None for other suffixes."""
    if key.rpartition(".")[2] not in AUDIO_KEYS:
        return None
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(value), dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), int(rate)


def npy_decoder(key: str, value: bytes) -> NDArray[Any] | None:
    """Decode the array in the bytes of a tar entry; None for other suffixes."""
    if key.rpartition(".")[2] != "npy":
        return None
    array: NDArray[Any] = np.load(io.BytesIO(value), allow_pickle=False)
    return array
