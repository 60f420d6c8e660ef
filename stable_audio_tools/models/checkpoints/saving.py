"""Writing of weights as .safetensors or .ckpt, with model config and provenance, complete or not at all."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.models.checkpoints.formats import CHECKSUM, checksum, open_weights
from stable_audio_tools.models.checkpoints.loading import read_weights
from stable_audio_tools.models.checkpoints.upgrades import widen_codebook_flags
from stable_audio_tools.version import __version__

logger = logging.getLogger(__name__)

_PICKLED = (".ckpt", ".pt", ".pth")


def save_weights(
    weights: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    model_config: Mapping[str, object] | None = None,
    provenance: Mapping[str, object] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write weights to a .safetensors or .ckpt file, by its suffix; a kill or a full disk leaves an old file intact.

    `provenance` is the origin of the weights (source file, step); the version of this package is added. `dtype`
    converts floating-point tensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors" and path.suffix not in _PICKLED:
        raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; weights are written as .safetensors or .ckpt")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = _apart(widen_codebook_flags({name: value.detach() for name, value in state.items()}), dtype)
    source = {"stable_audio_tools": __version__, **(provenance or {})}
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                _write_safetensors(tensors, temporary, model_config, source)
            else:
                _write_pickle(tensors, temporary, model_config, source)
    except CheckpointError:
        raise
    except Exception as error:
        note = "; the old file is unchanged" if path.exists() else ""
        raise CheckpointError(f"{path}: could not be written ({error}){note}") from error
    logger.info("wrote %d tensors to %s", len(tensors), path)
    return path


def export_weights(
    source: str | Path,
    target: str | Path,
    *,
    ema: bool | None = False,
    model_config: Mapping[str, object] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the model's own weights out of a training checkpoint, without building the model."""
    stored = read_weights(source, ema)
    logger.info("%s", stored.kind)
    origin = {**stored.provenance, "source": stored.name}
    config = model_config if model_config is not None else stored.model_config
    return save_weights(stored.tensors, target, model_config=config, provenance=origin, dtype=dtype)


def describe_weights(path: str | Path) -> str:
    """Describe type and contents of a weight file in a few lines; its checksums are compared."""
    stored = open_weights(path, verify=True)
    chosen = read_weights(stored)
    values = sum(value.numel() for value in stored.tensors.values())
    size = sum(value.numel() * value.element_size() for value in stored.tensors.values())
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in stored.tensors.values()})
    lines = [
        chosen.kind,
        f"{len(stored.tensors)} tensors, {values:,} values, {size / 2**30:.2f} GiB, {', '.join(kinds)}",
    ]
    parts: dict[str, list[Tensor]] = {}
    for name, value in stored.tensors.items():
        parts.setdefault(name.split(".", 1)[0], []).append(value)
    lines += [f"  {part}: {len(held)} tensors, {sum(v.numel() for v in held):,} values" for part, held in parts.items()]
    if stored.model_config is not None:
        lines.append(
            f"its model config is inside or beside it: {stored.model_config.get('model_type', 'unknown type')}"
        )
    lines += [f"{key}: {value}" for key, value in stored.provenance.items()]
    return "\n".join(lines)


def _write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, model_config: Mapping[str, object] | None, source: Mapping[str, object]
) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt", "provenance": json.dumps(source)}
    if model_config is not None:
        metadata["model_config"] = json.dumps(model_config)
    save_file(dict(tensors), path, {**metadata, CHECKSUM: checksum(tensors, metadata)})


def _write_pickle(
    tensors: Mapping[str, Tensor], path: Path, model_config: Mapping[str, object] | None, source: Mapping[str, object]
) -> None:
    # A pickle stores the whole memory behind a tensor, so slices of a larger one are copied.
    owned = {
        name: value if value.untyped_storage().nbytes() == value.numel() * value.element_size() else value.clone()
        for name, value in tensors.items()
    }
    content: JsonObject = {"state_dict": owned, "provenance": dict(source)}
    if model_config is not None:
        content["model_config"] = dict(model_config)
    with path.open("wb") as file:  # given a path, torch would write the temporary name into the archive
        torch.save(content, file)


def _apart(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory; shared ones are copied for each of their names."""
    apart: dict[str, Tensor] = {}
    shared = _overlapping(state)
    for name, value in state.items():
        if value.is_meta:
            raise CheckpointError(f"{name} has no values yet (meta device); load or initialise the model before saving")
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        apart[name] = value.clone(memory_format=torch.contiguous_format) if name in shared else value.contiguous()
    return apart


def _overlapping(state: Mapping[str, Tensor]) -> set[str]:
    """Return the names whose memory begins inside the memory of another name."""
    spans = sorted(
        (str(value.device), value.data_ptr(), value.data_ptr() + value.numel() * value.element_size(), name)
        for name, value in state.items()
        if value.numel() and not value.is_meta
    )
    shared, end, device = set(), 0, ""
    for place, start, stop, name in spans:
        if place == device and start < end:
            shared.add(name)
        device, end = place, max(stop, end if place == device else 0)
    return shared
