"""Pickled weight files (.ckpt, .pt, .pth, .bin), read only with `torch.load(weights_only=True)`.

This reader runs no code from a file. The archive is checked first, so that a forged header cannot request more memory
than the length of the file; afterwards every tensor is checked against that length. Classes that training programs
store in their checkpoints, and on which no weights depend, are replaced by placeholders.
"""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
VERIFY_BELOW = 64 * 2**20  # bytes; files below this are checked against their checksums on every load

_DROPPED = (
    "argparse.Namespace",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)
_DROPPED_MAPPINGS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


class Dropped:
    """A placeholder for a value on which no weights depend; its arguments are discarded."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _EmptyDict:
    """A class whose instances are plain dicts, the only mapping that torch's reader fills."""

    def __new__(cls, *_: object) -> dict[str, Any]:  # type: ignore[misc]
        return {}


class _Number(int):
    """A placeholder for an enumeration of integers, with the value of the member."""


def read_pickle(path: Path, verify: bool = False) -> Any:
    """Return the object in a torch file; tensors are mapped from disk if the format allows it."""
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    if is_zip:
        _check_archive(path, verify or path.stat().st_size < VERIFY_BELOW)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_placeholders()):
        warnings.simplefilter("ignore")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except CheckpointError:
            raise
        except Exception as error:
            raise _explain(path, error) from None
    _check_tensors(path, content)
    return content


def _placeholders() -> list[Any]:
    kinds = (
        (Dropped, _DROPPED),
        (_EmptyDict, _DROPPED_MAPPINGS),
        (_Number, ("deepspeed.runtime.zero.config.ZeroStageEnum",)),
    )
    placeholders = []
    for base, names in kinds:
        for full_name in names:
            module, name = full_name.rsplit(".", 1)
            placeholders.append(type(name, (base,), {"__module__": module, "__qualname__": name}))
    return placeholders


def _check_archive(path: Path, verify: bool) -> None:
    """Refuse archives that torch does not write: foreign, compressed, cut short or damaged."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            damaged = archive.testzip() if verify else None
    except Exception as error:
        raise CheckpointError(f"{path}: the archive is damaged or cut short ({_first_line(error)})") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path}: a TorchScript program, which holds code; save its state_dict() and load that")
    if not any(name.endswith("/data.pkl") for name in names):
        some = ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "nothing"
        raise CheckpointError(f"{path}: a zip archive, but not one that torch.save wrote (it holds {some})")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: its archive is compressed, which torch never does; the file is not a checkpoint"
        )
    if any(entry.file_size > size or entry.header_offset > size for entry in entries):
        raise CheckpointError(f"{path}: its archive claims more bytes than the file has; it is damaged or forged")
    if damaged is not None:
        raise CheckpointError(
            f"{path}: {damaged!r} in it does not match its checksum; the file is damaged, copy it again"
        )


def _explain(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    name = re.search(r"GLOBAL ([\w.]+)", text)
    if name or "reduce for unrecognized function" in text:
        culprit = f"{name.group(1)!r}" if name else "a function"
        return CheckpointError(
            f"{path}: refused, and nothing in it was run: the pickle names {culprit}, which weights do not need and "
            "which could be code. If you trust its author, ask for a .safetensors file, or save its state_dict() alone"
        )
    reason = text.partition("WeightsUnpickler error: ")[2] or _first_line(error)
    return CheckpointError(
        f"{path}: cannot be read as a torch file ({_first_line(reason)}); it is damaged or cut short"
    )


def _check_tensors(path: Path, content: object) -> None:
    """Check that all tensors are plain ones in memory, together no longer than the file."""
    size = path.stat().st_size
    storages: dict[int, int] = {}
    for name, tensor in _tensors(content):
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain:
            raise CheckpointError(
                f"{path}: {name} is a {tensor.layout} tensor on {tensor.device}; only dense ones load"
            )
        if tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"{path}: {name} claims the shape {list(tensor.shape)}, more than the file holds")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > size:
        raise CheckpointError(f"{path}: its tensors claim more bytes than the file has; it is damaged or forged")


def _tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in the object with its name; each container is visited once."""
    pending, seen = [("", content)], set()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            yield name or "the tensor", value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending += [(f"{name}.{key}" if name else str(key), item) for key, item in items]


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
