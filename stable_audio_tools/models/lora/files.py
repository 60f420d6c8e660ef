"""Adapter files: tensors by layer, and a header that says what they are.

Ours is a `.safetensors` file with tensors named `<path of the layer>.<factor>` and, under `lora` in its header, type,
rank, alpha, targets, base model and the hash of its weights, trigger text, step and library version. The header
also carries `lora_config`, under which Stable Audio 3 looks for type, rank and alpha.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.models.checkpoints import StoredWeights, open_weights
from stable_audio_tools.models.checkpoints.formats import CHECKSUM, checksum
from stable_audio_tools.models.lora.formats import assemble, parse
from stable_audio_tools.models.lora.stored import LoraFile, check_shapes


def read_lora(path: str | Path, alpha: float | None = None) -> LoraFile:
    """Read an adapter of any known format. `alpha` is for files that do not tell it."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; name the adapter file in it")
    stored = open_weights(path)
    found = parse(stored.path, stored.tensors, _header(stored))
    check_shapes(found)
    return found if alpha is None else found.with_alpha(alpha)


def write_lora(lora: LoraFile, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write an adapter in the format that `lora.format` names; whole or not at all."""
    path = Path(path)
    tensors, header = assemble(lora)
    if dtype is not None:
        tensors = {name: value.to(dtype) for name, value in tensors.items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                _write_safetensors(tensors, header, temporary)
            elif path.suffix == ".ckpt":
                _write_pickle(tensors, header, temporary, bare=lora.format == "loraw")
            else:
                raise CheckpointError(
                    f"{path}: unknown suffix {path.suffix!r}; adapters are .safetensors or .ckpt files"
                )
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error})") from error
    return path


def describe_lora(path: str | Path) -> str:
    """What an adapter file is and holds, over a few lines."""
    lora = read_lora(path)
    config, facts = lora.config, dict(lora.facts)
    size = sum(t.numel() * t.element_size() for held in lora.layers.values() for t in held.values())
    kinds = sorted({str(t.dtype).removeprefix("torch.") for held in lora.layers.values() for t in held.values()})
    alpha = f"{config.alpha or config.rank:g}" if lora.knows_alpha else f"not in the file, taken as {config.rank}"
    ranks = "".join(f", {rank} at {pattern!r}" for pattern, rank in config.ranks.items())
    lines = [
        f"{lora.name}: an adapter of type {config.adapter_type} in {_NOUNS[lora.format]}",
        f"rank {config.rank}{ranks}, alpha {alpha}",
        f"{len(lora.layers)} layers, {lora.num_parameters:,} values, {size / 2**20:.2f} MiB, {', '.join(kinds)}",
    ]
    lines += [f"{key.replace('_', ' ')}: {_told(value)}" for key, value in facts.items() if value not in (None, "", {})]
    names = list(lora.layers)
    lines += [f"  {name}" for name in names[:5]] + ([f"  and {len(names) - 5} more"] if len(names) > 5 else [])
    return "\n".join(lines)


_NOUNS = {
    "native": "this package's format",
    "loraw": "LoRAW's format",
    "sa3": "Stable Audio 3's format",
    "comfyui": "ComfyUI's format",
}


def _header(stored: StoredWeights) -> dict[str, Any]:
    """What the file says of its tensors: JSON in a safetensors header, objects in a .ckpt."""
    header: dict[str, Any] = {}
    for key in ("lora", "lora_config"):
        value = stored.extra.get(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise CheckpointError(
                    f"{stored.path}: {key!r} in its header is not JSON; the file is damaged"
                ) from None
        if isinstance(value, Mapping):
            header[key] = value
    return header


def _write_safetensors(tensors: dict[str, Tensor], header: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in header.items()}}
    save_file(tensors, path, {**metadata, CHECKSUM: checksum(tensors, metadata)})


def _write_pickle(tensors: dict[str, Tensor], header: Mapping[str, Any], path: Path, bare: bool) -> None:
    with path.open("wb") as file:
        torch.save(tensors if bare else {"state_dict": tensors, **header}, file)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
