"""Checks of model and dataset configs before a run: each alone, the files they name, and whether they fit together."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.dataset import check_dataset_config, contents_of, load_dataset_config
from stable_audio_tools.models.summary import summarise_model_config
from stable_audio_tools.training.factory import TrainingSection, check_training_config

T = TypeVar("T")

_FILE_KEYS = ("custom_metadata_module", "exclude_paths_file", "include_paths_file")
_ENTRY_FILE_KEYS = ("custom_metadata_module", "metadata_path")


def check_files(paths: Sequence[Path]) -> JsonObject:
    """Check config files, in any order, and return what they build; every mistake is in the one ConfigError."""
    problems: list[str] = []
    summary: JsonObject = {}
    section: TrainingSection | None = None
    model_path: Path | None = None
    datasets: list[tuple[Path, JsonObject]] = []

    def collect(path: Path, check: Callable[..., T], *arguments: object) -> T | None:
        try:
            return check(*arguments)
        except ConfigError as error:
            problems.extend(text if text.startswith(str(path)) else f"{path}: {text}" for text in error.problems)
            return None

    for path in paths:
        config = collect(path, load, path)
        if config is None:
            continue
        if "dataset_type" in config or ("datasets" in config and "model_type" not in config):
            config = load_dataset_config(path)
            part = collect(path, check_dataset_config, config)
            if part is not None:
                summary["dataset"] = part.type
                problems += [f"{path}: {text}" for text in missing_files(config)]
                datasets.append((path, config))
            continue
        model_path = path
        summary = {**(collect(path, summarise_model_config, config) or {}), **summary}
        if config.get("training") is not None:
            section = collect(path, check_training_config, config)
    if section is not None and model_path is not None:
        for path, config in datasets:
            problems += wrong_kind(f"{model_path}: training.pre_encoded", section, str(path), config)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return summary


def missing_files(dataset: JsonObject) -> Iterator[str]:
    """Yield one sentence for each folder and file that a dataset config names and that does not exist."""
    for key in _FILE_KEYS:
        if dataset.get(key) is not None and not Path(dataset[key]).is_file():
            yield f"dataset.{key}: no such file: {dataset[key]}"
    for number, entry in enumerate(dataset.get("datasets", ())):
        where = f"dataset.datasets[{number}]"
        path = entry.get("path")
        if path is not None and "://" not in path and not Path(path).is_dir():
            what = "is a file, and a folder is needed" if Path(path).is_file() else "no such folder"
            yield f"{where}.path: {what}: {path}"
        for key in _ENTRY_FILE_KEYS:
            if entry.get(key) is not None and not Path(entry[key]).is_file():
                yield f"{where}.{key}: no such file: {entry[key]}"


def wrong_kind(key: str, section: TrainingSection, path: str, data: JsonObject) -> Iterator[str]:
    """Yield a sentence if a dataset holds latents where the model encodes audio itself, or audio where it does not."""
    kind, expected = data.get("dataset_type"), bool(getattr(section.training.config, "pre_encoded", False))
    contents = contents_of(data)
    with_latents = contents == "latents" and bool(data.get("pre_encoded"))
    shown = f"{path}: dataset_type: {kind!r}{' with pre_encoded' if with_latents else ''}"
    if contents == "latents" and not expected:
        yield f"{key}: is false, but {shown} holds latents; set it to true, or train on a data set of audio"
    if contents == "audio" and expected:
        yield f"{key}: is true, but {shown} holds audio; set it to false, or train on a data set of latents"
