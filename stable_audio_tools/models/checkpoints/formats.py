"""Recognition of weights by content: a file, shards with an index, a folder, a checkpoint of several processes.

A damaged or foreign file raises a CheckpointError of one sentence. Tensors are mapped from disk: they use memory when
they are first accessed, and writing to them never changes the file.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.models.checkpoints.pickles import PICKLE_MAGICS, VERIFY_BELOW, ZIP_MAGIC, read_pickle
from stable_audio_tools.models.checkpoints.sharded import WEIGHTS, is_sharded, read_run, read_tensors
from stable_audio_tools.models.checkpoints.wrappers import strip_engine_names
from stable_audio_tools.models.checkpoints.zero import read_zero, zero_folder

CHECKSUM = "crc32"  # key in the metadata of a safetensors file


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32 of metadata, names, types, shapes and values."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            crc = zlib.crc32(flat.view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


CONFIG_NAME = "model_config.json"
WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json", "model.ckpt")  # the order of preference
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_LARGEST_HEADER = 100 * 2**20  # of a safetensors file, by its specification
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights; fetch them with: git lfs pull"),
    (b"<", "a web page, not weights; the download went wrong, fetch the file again"),
    (b"RIFF", "an audio file"),
    (b"fLaC", "an audio file"),
    (b"ID3", "an audio file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "an image"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"{", "a JSON file; pass the weight file, and the config where the config belongs"),
    (b"GGUF", "a GGUF file, which this package does not read"),
)


@dataclass(frozen=True)
class StoredWeights:
    """Weights in a path, by the names in the file."""

    path: str
    kind: str  # as in "epoch=3.ckpt is {kind}"
    tensors: dict[str, Tensor]
    model_config: JsonObject | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    is_training: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # a safetensors header, or other entries of a pickle

    @property
    def name(self) -> str:
        return Path(self.path).name or self.path


def open_weights(path: str | Path, verify: bool = False) -> StoredWeights:
    """Recognise and map the weights in `path`.

    Checksums in the file are compared if it is below 64 MiB, or if `verify` is set.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path, verify)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.name.endswith(".index.json"):
        return _open_shards(path, verify)
    with _explained(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    if not size:
        raise CheckpointError(f"{path}: empty; the download or the copy did not finish")
    length = int.from_bytes(head[:8], "little")  # of a safetensors header; 640 looks like the start of a pickle too
    looks_right = head[8:9] == b"{" and len(head) > 8
    if looks_right and length <= min(size - 8, _LARGEST_HEADER):
        return _open_safetensors(path, verify)
    if head.startswith((ZIP_MAGIC, *PICKLE_MAGICS)):
        return _open_pickle(path, verify)
    if looks_right and path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: cut short or damaged: its header claims {length} bytes of {size} in the file")
    nouns = (noun for magic, noun in _FOREIGN if head.lstrip().startswith(magic))
    other = "something else; weights are .safetensors, .ckpt, .pt, .pth or .bin files, or folders of them"
    raise CheckpointError(f"{path}: not a weight file but {next(nouns, other)}")


def weights_in_folder(folder: Path) -> Path:
    """Return the weight file of a model folder: one of the usual names, or else the only one."""
    for name in WEIGHT_NAMES:
        if (folder / name).exists():
            return folder / name
    indices = sorted(folder.glob("*.safetensors.index.json"))
    found = indices or sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if len(found) == 1:
        return found[0]
    usual = " or ".join(WEIGHT_NAMES)
    if not found:
        raise CheckpointError(f"{folder}: no weights in this folder; expected {usual}")
    names = ", ".join(file.name for file in found[:5])
    raise CheckpointError(f"{folder}: several weight files ({names}) and none named {usual}; name the file itself")


def _open_folder(folder: Path, verify: bool) -> StoredWeights:
    parts = zero_folder(folder)
    if parts is not None:
        with _explained(folder):
            zero = read_zero(parts)
        where = (
            f"stage {zero.stage}, {zero.ranks} ranks" if zero.stage else "no optimizer files: half-precision weights"
        )
        stored = _of_training(folder, f"a DeepSpeed ZeRO checkpoint ({where})", zero.tensors, zero.client)
        return replace(stored, is_training=True)
    if is_sharded(folder):
        with _explained(folder):
            tensors = {name.removeprefix(WEIGHTS): value for name, value in read_tensors(folder, WEIGHTS).items()}
            stored = _of_training(folder, "a training checkpoint in shards", tensors, read_run(folder))
        return replace(stored, is_training=True)
    file = weights_in_folder(folder)
    stored = open_weights(file, verify)
    config = folder / CONFIG_NAME
    if not config.exists():
        return stored
    try:
        return replace(stored, model_config=load(config))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _open_safetensors(path: Path, verify: bool) -> StoredWeights:
    from safetensors import safe_open

    with _explained(path), safe_open(str(path), framework="pt", device="cpu") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if CHECKSUM in metadata and (verify or path.stat().st_size < VERIFY_BELOW):
        expected = metadata.pop(CHECKSUM)
        if expected != checksum(tensors, metadata):
            raise CheckpointError(f"{path}: its contents do not match its checksum; the file is damaged, copy it again")
    config, provenance = _json(metadata.get("model_config")), _json(metadata.get("provenance"))
    names = strip_engine_names(tensors)
    return StoredWeights(str(path), "a safetensors file", names, config, provenance or {}, extra=metadata)


def _open_shards(index: Path, verify: bool) -> StoredWeights:
    with _explained(index):
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
    tensors: dict[str, Tensor] = {}
    first: StoredWeights | None = None
    for shard in shards:
        if Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise CheckpointError(f"{index}: names {shard!r}; shards are .safetensors files beside their index")
        stored = open_weights(index.parent / shard, verify)
        first = first or stored
        tensors.update(stored.tensors)
    if first is None:
        raise CheckpointError(f"{index}: names no shards")
    lost = sorted(set(strip_engine_names(dict.fromkeys(files))) - set(tensors))  # type: ignore[arg-type]
    if lost:
        raise CheckpointError(f"{index}: {lost[0]!r} and {len(lost) - 1} more tensors are in none of the shards")
    return replace(first, path=str(index), kind=f"a safetensors file in {len(shards)} shards", tensors=tensors)


def _open_pickle(path: Path, verify: bool) -> StoredWeights:
    content = read_pickle(path, verify)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: a torch file, but it holds a {type(content).__name__} instead of named weights")
    if any(key in content for key in ("pytorch-lightning_version", "loops", "optimizer_states")):
        if not isinstance(content.get("state_dict"), Mapping):
            raise CheckpointError(f"{path}: a training checkpoint without a 'state_dict'")
        stored = _of_training(path, "a training checkpoint", _only_tensors(content["state_dict"]), content)
        return replace(stored, is_training=True)
    bare = _only_tensors(content)
    inner = {str(key): found for key, value in content.items() if (found := _only_tensors(value))}
    if "state_dict" in inner:
        stored = _of_training(path, "an unwrapped checkpoint", inner["state_dict"], content)
        return replace(stored, extra={key: value for key, value in content.items() if key != "state_dict"})
    if bare and len(bare) >= len(content) / 2:
        return _of_training(path, "a bare state dict", bare, {})
    if len(inner) == 1:
        key, tensors = next(iter(inner.items()))
        return _of_training(path, f"a torch file with its weights under {key!r}", tensors, content)
    keys = ", ".join(repr(str(key)) for key in list(content)[:5]) or "nothing"
    raise CheckpointError(f"{path}: a torch file, but no weights were found in it; it holds {keys}")


def _of_training(path: Path, kind: str, tensors: dict[str, Tensor], content: Mapping[str, Any]) -> StoredWeights:
    config, step = content.get("model_config"), content.get("global_step", content.get("global_steps"))
    provenance = dict(content["provenance"]) if isinstance(content.get("provenance"), Mapping) else {}
    if isinstance(step, int):
        provenance.setdefault("step", step)
    config = config if isinstance(config, dict) else None
    return StoredWeights(str(path), kind, strip_engine_names(tensors), config, provenance)


def _only_tensors(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {key: value.data for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _json(text: str | None) -> JsonObject | None:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Convert any error of a reader on a damaged file to one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path}: cannot be read ({reason}); it is damaged or cut short") from error
