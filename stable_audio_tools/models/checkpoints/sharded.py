"""Training checkpoints that several processes write: a folder in the format of `torch.distributed.checkpoint`.

Each process writes its shards (`__<rank>_0.distcp`), `.metadata` maps tensors to files, and `run.pt` holds the parts of
the checkpoint that are not tensors of the model or of an optimiser. Any number of processes can read it: all of it, or
each its own part of every tensor.

Tensors are named `state_dict/<name>` and `optimizer/<number>/<parameter>/<entry>`.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints.pickles import read_pickle

if TYPE_CHECKING:  # most weight files need nothing of it
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

Checkpoint = dict[str, Any]

RUN = "run.pt"
WEIGHTS = "state_dict/"
_OPTIMIZERS = "optimizer/"
_METADATA = ".metadata"
_ALLOWED = {
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


def is_sharded(folder: Path) -> bool:
    """Return whether the folder holds such a checkpoint."""
    return (folder / _METADATA).is_file() and (folder / RUN).is_file()


def missing_shards(folder: Path) -> str | None:
    """Return a sentence about the first shard that is missing or too short."""
    ends: dict[str, int] = {}
    for info in _read_metadata(folder).storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        file = folder / Path(name).name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size < end:
            return f"{name} is cut short"
    return None


def read_tensors(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the whole tensors whose names begin with `prefix`."""
    shapes = {name: about for name, about in stored_shapes(folder).items() if name.startswith(prefix)}
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in shapes.items()}
    fill(folder, tensors)
    return tensors


def stored_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and type of each tensor in the folder."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    stored = _read_metadata(folder).state_dict_metadata
    tensors = {name: about for name, about in stored.items() if isinstance(about, TensorStorageMetadata)}
    return {name: (about.size, about.properties.dtype) for name, about in tensors.items()}


def fill(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read values into tensors by name, of a DTensor its local part; waits for no other process."""
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    with torch.no_grad():
        _load_state_dict(tensors, _reader(folder), no_dist=True)


def read_run(folder: Path) -> Checkpoint:
    """Return the checkpoint without its tensors."""
    return dict(read_pickle(folder / RUN))


def read_sharded(folder: Path) -> Checkpoint:
    """Return the whole checkpoint, as a single process would have written it."""
    return joined(read_run(folder), read_tensors(folder))


def split(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Divide a checkpoint into the contents of `run.pt` and named tensors."""
    rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    tensors = {f"{WEIGHTS}{name}": value for name, value in checkpoint["state_dict"].items()}
    optimizers = []
    for number, state in enumerate(checkpoint.get("optimizer_states", ())):
        plain: dict[int, Checkpoint] = {}
        for index, entries in state["state"].items():
            plain[index] = {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
            tensors |= {
                f"{_OPTIMIZERS}{number}/{index}/{name}": value
                for name, value in entries.items()
                if isinstance(value, Tensor)
            }
        optimizers.append({**state, "state": plain})
    return {**rest, "optimizer_states": optimizers}, tensors


def joined(rest: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Return the checkpoint that `split` divided."""
    weights = {name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)}
    optimizers = [
        {**state, "state": {i: dict(own) for i, own in state["state"].items()}} for state in rest["optimizer_states"]
    ]
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZERS):
            number, index, entry = name.removeprefix(_OPTIMIZERS).split("/", 2)
            optimizers[int(number)]["state"][int(index)][entry] = value
    return {**rest, "state_dict": weights, "optimizer_states": optimizers}


def optimizer_entry(name: str) -> tuple[int, int] | None:
    """Return the number of the optimiser and of the parameter that a tensor belongs to."""
    if not name.startswith(_OPTIMIZERS):
        return None
    number, index, _ = name.removeprefix(_OPTIMIZERS).split("/", 2)
    return int(number), int(index)


def _reader(folder: Path) -> "FileSystemReader":
    from torch.distributed.checkpoint import FileSystemReader

    class ShardReader(FileSystemReader):
        """A reader that runs no code from `.metadata`, which torch's own reader would."""

        def read_metadata(self, *_: object, **__: object) -> "Metadata":
            return _read_metadata(folder)

    return ShardReader(folder)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype) or value is torch.Size:
            return value
        raise CheckpointError(f"names {module}.{name}, which no such checkpoint holds; it is damaged or forged")


def _read_metadata(folder: Path) -> "Metadata":
    try:
        with (folder / _METADATA).open("rb") as file:
            return _Unpickler(file).load()
    except CheckpointError as error:
        raise CheckpointError(f"{folder / _METADATA}: {error}") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder / _METADATA}: cannot be read ({reason}); it is damaged or cut short") from error
