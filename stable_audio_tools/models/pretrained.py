"""Models ready to use: from a config and a weight file, a folder, or the Hugging Face Hub."""

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.devices import parse_dtype, pick_device
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import StoredWeights, load_into, open_weights, parameters_on_meta
from stable_audio_tools.models.checkpoints.formats import CONFIG_NAME, WEIGHT_NAMES
from stable_audio_tools.models.factory import create_model_from_config

logger = logging.getLogger(__name__)


class FolderFormat(Protocol):
    """A folder format of another package, next to our own of `model_config.json` and weights.

    Formats are objects of the subjects they belong to, named in `_FORMATS` and imported when a folder holds their
    index.
    """

    index_name: str  # the file that marks such a folder

    def file_patterns(self, suffix: Literal["safetensors", "bin"]) -> list[str]:
        """Return patterns of the files that a model consists of, in a repository that may hold more."""
        ...

    def missing_file(self, folder: str | Path) -> str | None:
        """Return the first file that the index names and that does not exist."""
        ...

    def read_config(self, folder: str | Path) -> JsonObject:
        """Return the model config of the folder."""
        ...

    def load(self, folder: str | Path) -> tuple[nn.Module, JsonObject]:
        """Return the model in eval mode, and its config."""
        ...


_FORMATS = {"model_index.json": "stable_audio_tools.mel.pipeline_folders:PIPELINES"}
INDEX_NAMES = tuple(_FORMATS)


def format_of_index(index_name: str) -> FolderFormat:
    """Return the format whose folders hold a file of that name."""
    module, _, name = _FORMATS[index_name].partition(":")
    found: FolderFormat = getattr(import_module(module), name)
    return found


def format_of_folder(folder: Path) -> FolderFormat | None:
    """Return the format of a folder; None for a folder without an index."""
    index = next((name for name in INDEX_NAMES if (folder / name).is_file()), None)
    return None if index is None else format_of_index(index)


Device = str | torch.device | None
DType = str | torch.dtype | None
Where = Literal["cache", "network"]
_SUFFIXES: tuple[Literal["safetensors", "bin"], ...] = ("safetensors", "bin")


def load_model(
    config: Mapping[str, Any] | str | Path | None,
    weights: str | Path | StoredWeights,
    device: Device = None,
    dtype: DType = None,
    *,
    ema: bool | None = False,
    partial: bool = False,
) -> nn.Module:
    """Build a model in eval mode with its weights, in a fraction of the time and memory of a build and a load.

    `config`: dict, path, or None for the config stored with the weights. `device`: None is the CPU, where weights stay
    mapped from the file until they are accessed. `dtype`: None keeps the types of a new model. `ema` and `partial` as
    in `load_into`; a partial load initialises the other tensors as in a new model.
    """
    stored = weights if isinstance(weights, StoredWeights) else open_weights(weights)
    model_config = fit_config(_config_of(config, stored), stored)
    place = torch.device("cpu") if device is None else pick_device(device)
    precision = None if dtype is None else parse_dtype(dtype)
    if partial:
        model = create_model_from_config(model_config)
    else:
        with parameters_on_meta():
            model = create_model_from_config(model_config)
    load_into(model, stored, partial=partial, ema=ema, device=place, dtype=precision)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = [tensor_name for tensor_name, tensor in tensors if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{stored.path}: holds no values for {empty[0]} and {len(empty) - 1} more tensors")
    return model.to(device=place, dtype=precision).eval()


def get_pretrained_model(
    name: str | Path,
    *,
    device: Device = None,
    dtype: DType = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[nn.Module, JsonObject]:
    """Return a model and its config from a local folder or a Hugging Face repository.

    Both hold `model_config.json` beside `model.safetensors` (preferred, also in shards) or `model.ckpt`, or an audio
    diffusion pipeline of diffusers. Cached downloads are used without network access; `revision` selects a version.
    """
    folder = Path(name).expanduser()
    config_path, weights_path = _in_folder(folder) if folder.is_dir() else _from_hub(str(name), revision, cache_dir)
    if config_path.name in INDEX_NAMES:
        model, described = format_of_index(config_path.name).load(weights_path)
        place = torch.device("cpu") if device is None else pick_device(device)
        return model.to(device=place, dtype=None if dtype is None else parse_dtype(dtype)), described
    stored = open_weights(weights_path)
    config = fit_config(load(config_path), stored)
    return load_model(config, stored, device, dtype), config


def find_model(
    name: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> tuple[JsonObject, Path]:
    """Return the config of a model and the path of its weights, without loading it.

    `name` is a weight file that stores its config, a folder with `model_config.json`, or a Hugging Face repository.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return dict(_config_of(None, open_weights(path))), path
    config_path, weights = _in_folder(path) if path.is_dir() else _from_hub(str(name), revision, cache_dir)
    if config_path.name in INDEX_NAMES:
        raise CheckpointError(f"{name}: a folder in the format of diffusers; convert it to a model config and weights")
    return load(config_path), weights


def fit_config(config: Mapping[str, Any], stored: StoredWeights) -> JsonObject:
    """Return the config completed by settings that the names of the weights imply."""
    fitted = copy.deepcopy(dict(config))
    options = fitted.get("model")
    for key in ("diffusion", "config"):
        options = options.get(key, options) if isinstance(options, dict) else None
    per_layer = any(name.endswith(".to_scale_shift_gate.1.weight") for name in stored.tensors)
    if per_layer and isinstance(options, dict) and options.get("global_cond_type") == "adaLN":
        options.setdefault("adaln_layout", "per_layer")
        logger.info("%s has one adaLN projection per layer, as releases before 0.0.17 wrote", stored.name)
    return fitted


def _config_of(config: Mapping[str, Any] | str | Path | None, stored: StoredWeights) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if config is not None:
        return load(config)
    if stored.model_config is None:
        raise CheckpointError(f"{stored.path}: no model config is stored with these weights; give the config file too")
    return stored.model_config


def _in_folder(folder: Path) -> tuple[Path, Path]:
    """Return config and folder, or the index of another format and its folder."""
    for filename in (CONFIG_NAME, *INDEX_NAMES):
        if (folder / filename).exists():
            return folder / filename, folder
    raise CheckpointError(f"{folder}: no {CONFIG_NAME} in this folder; a model folder holds it beside its weights")


def _from_hub(name: str, revision: str | None, cache_dir: str | Path | None) -> tuple[Path, Path]:
    """Return config and weights from the local cache, or download them."""
    from huggingface_hub.utils import HFValidationError

    try:
        for where in ("cache", "network"):
            found = _hub_model(name, revision, cache_dir, where) or _hub_folder(name, revision, cache_dir, where)
            if found is not None:
                return found
    except HFValidationError:
        raise CheckpointError(f"{name}: neither a folder here nor a name of the form 'owner/model'") from None
    weights, indices = " or ".join(WEIGHT_NAMES), " or ".join(INDEX_NAMES)
    raise CheckpointError(
        f"{name}: the repository on huggingface.co holds no {CONFIG_NAME} with {weights}, and no {indices}"
    )


def _hub_model(name: str, revision: str | None, cache_dir: str | Path | None, where: Where) -> tuple[Path, Path] | None:
    config = _hub_file(name, CONFIG_NAME, revision, cache_dir, where)
    for filename in WEIGHT_NAMES if config is not None else ():
        weights = _hub_file(name, filename, revision, cache_dir, where)
        if config is None or weights is None:
            continue
        shards = load(weights).get("weight_map", {}).values() if weights.name.endswith(".index.json") else ()
        for shard in sorted(set(shards)):
            if _hub_file(name, shard, revision, cache_dir, where) is None:
                raise CheckpointError(f"{name}: {weights.name} names {shard!r}, which does not exist")
        return config, weights
    return None


def _hub_folder(
    name: str, revision: str | None, cache_dir: str | Path | None, where: Where
) -> tuple[Path, Path] | None:
    """Return index and folder of a complete model in another format; pickles only if there is nothing else."""
    for index_name in INDEX_NAMES:
        index = _hub_file(name, index_name, revision, cache_dir, where)
        if index is None:
            continue
        files = format_of_index(index_name)
        missing = files.missing_file(index.parent)  # other kinds of pipelines are refused before they are downloaded
        for suffix in _SUFFIXES:
            folder = _hub_files(name, files.file_patterns(suffix), revision, cache_dir, where)
            missing = index_name if folder is None else files.missing_file(folder)
            if folder is not None and missing is None:
                return folder / index_name, folder
        if where == "network":
            raise CheckpointError(
                f"{name}: the repository on huggingface.co holds no {missing}, which its {index_name} names"
            )
    return None


def fetch_from_hub(
    name: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Return one file of a repository on huggingface.co, from the local cache or downloaded."""
    from huggingface_hub.utils import HFValidationError

    try:
        for where in ("cache", "network"):
            found = _hub_file(name, filename, revision, cache_dir, where)
            if found is not None:
                return found
    except HFValidationError:
        raise CheckpointError(f"{name}: neither a file or folder here nor a name of the form 'owner/model'") from None
    raise CheckpointError(f"{name}: the repository on huggingface.co holds no {filename}")


def _hub_file(
    name: str, filename: str, revision: str | None, cache_dir: str | Path | None, where: Where
) -> Path | None:
    """Return one file of a repository, or None if it (or the cache) has no such file."""
    from huggingface_hub import hf_hub_download

    options: JsonObject = {"revision": revision, "cache_dir": cache_dir, "local_files_only": where == "cache"}
    return _explained(functools.partial(hf_hub_download, name, filename, **options), name, filename, revision, where)


def _hub_files(
    name: str, patterns: list[str], revision: str | None, cache_dir: str | Path | None, where: Where
) -> Path | None:
    """Return the folder of a repository's files, or None if the cache has none."""
    from huggingface_hub import snapshot_download

    options: JsonObject = {"revision": revision, "cache_dir": cache_dir, "local_files_only": where == "cache"}
    fetch = functools.partial(snapshot_download, name, allow_patterns=patterns, **options)
    return _explained(fetch, name, "the pipeline", revision, where)


def _explained(fetch: Callable[[], str], name: str, filename: str, revision: str | None, where: Where) -> Path | None:
    """Return the result of the hub's client, None if there is no such file; other errors become one sentence."""
    from huggingface_hub import constants
    from huggingface_hub import utils as errors  # their one home in every release

    page = f"https://huggingface.co/{name}"
    try:
        found = fetch()
    except errors.LocalEntryNotFoundError as error:
        if where == "cache":
            return None
        if constants.HF_HUB_OFFLINE:
            raise CheckpointError(
                f"{name}: {filename} is not in the local cache, and offline mode is on; unset HF_HUB_OFFLINE to "
                "download it, or give a folder with the repository's files instead of the name"
            ) from None
        raise CheckpointError(
            f"{name}: {filename} is not in the local cache and {page} cannot be reached; connect once to download "
            f"it, or copy the repository into a folder and give that folder instead of the name ({_reason(error)})"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name}: its authors ask for agreement first; accept the licence at {page}, then run: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: no revision {revision!r}; see {page}/tree/main") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: neither a folder here nor a repository at {page}; if it is private, log in with: hf auth login"
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{name}: {filename} could not be downloaded from {page} ({_reason(error)})") from error
    return Path(found)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
