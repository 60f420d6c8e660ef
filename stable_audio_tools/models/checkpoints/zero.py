"""DeepSpeed ZeRO folders: the float32 weights of stages 1, 2 and 3, joined from the files of every rank.

Layout: `<folder>/latest` names a subfolder with one `*_optim_states.pt` per rank (flat float32 master weights) and the
`*_model_states.pt` files (names, shapes, buffers, frozen weights). In stages 1 and 2 the flat vectors of a parameter
group, rank after rank, are its parameters one after another, then padding. In stage 3 each parameter is split evenly
over the ranks, the last piece padded.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints.pickles import read_pickle

_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)")
_OTHER_WAY = "run the zero_to_fp32.py that DeepSpeed left in the folder, and load the file it writes"


class ZeroWeights(NamedTuple):
    tensors: dict[str, Tensor]
    client: JsonObject  # entries that the training program stored beside the weights
    stage: int
    ranks: int


def zero_folder(folder: Path) -> Path | None:
    """Return the subfolder with the files of the ranks, if this is a ZeRO folder."""
    if any(folder.glob("*_model_states.pt")):
        return folder
    latest = folder / "latest"
    if latest.is_file():
        named = folder / Path(latest.read_text(errors="replace").strip()[:255]).name
        if any(named.glob("*_model_states.pt")):
            return named
    found = sorted({file.parent for file in folder.glob("*/*_model_states.pt")})
    if len(found) > 1:
        raise CheckpointError(f"{folder}: several DeepSpeed checkpoints in it; name one: {', '.join(map(str, found))}")
    return found[0] if found else None


def require_all_ranks(folder: Path) -> None:
    """Raise CheckpointError if files of ranks are missing in a folder found by `zero_folder`."""
    files = _by_rank(folder, "*_optim_states.pt")
    if files:
        state = _part(read_pickle(files[0]), "optimizer_state_dict", files[0])
        _stage_and_ranks(folder, [state] * len(files))


def read_zero(folder: Path) -> ZeroWeights:
    """Consolidate the folder that `zero_folder` found."""
    model_states = [_read_states(file) for file in _by_rank(folder, "*_model_states.pt")]
    first = model_states[0]
    files = _by_rank(folder, "*_optim_states.pt")
    if not files:
        return ZeroWeights(_half_precision(folder, first), _client(first), 0, 1)
    optimizers = [_part(read_pickle(file), "optimizer_state_dict", file) for file in files]
    stage, ranks = _stage_and_ranks(folder, optimizers)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    groups = [list(_part(state, key, folder)) for state in optimizers]
    if not all(isinstance(group, Tensor) and group.dim() == 1 for owned in groups for group in owned):
        raise CheckpointError(f"{folder}: a group of master weights is not a flat tensor; {_OTHER_WAY}")
    names = set(first["buffer_names"])
    tensors = {
        name: value.float() for name, value in first["module"].items() if name in names and isinstance(value, Tensor)
    }
    tensors.update(_frozen(folder, model_states, stage))
    shapes = first["param_shapes"]
    shapes = [shapes] if isinstance(shapes, Mapping) else list(shapes)
    tensors.update(_from_pieces(folder, shapes, groups) if stage == 3 else _from_groups(folder, shapes, groups))
    for alias, name in dict(first.get("shared_params") or {}).items():
        if name in tensors:
            tensors[alias] = tensors[name]
    return ZeroWeights(tensors, _client(first), stage, ranks)


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    ranked = []
    for file in folder.glob(pattern):
        match = _RANK.search(file.name)
        tensor_rank = match.group(2) if match else re.sub(r"\D", "", file.name)
        if "expert" in file.name or int(tensor_rank or 0) > 0:
            raise CheckpointError(f"{file}: written with tensor or expert parallelism; {_OTHER_WAY}")
        ranked.append((int(match.group(1)) if match else 0, file))
    return [file for _, file in sorted(ranked)]


def _read_states(file: Path) -> JsonObject:
    states = read_pickle(file)
    missing = [key for key in ("module", "buffer_names", "param_shapes") if not _has(states, key)]
    if missing:
        raise CheckpointError(f"{file}: not a DeepSpeed model file, it has no {missing[0]!r}")
    return dict(states)


def _has(states: object, key: str) -> bool:
    return isinstance(states, Mapping) and key in states


def _part(states: Any, key: str, where: Path) -> Any:
    if not _has(states, key):
        raise CheckpointError(f"{where}: no {key!r} in it; {_OTHER_WAY}")
    return states[key]


def _stage_and_ranks(folder: Path, optimizers: Sequence[object]) -> tuple[int, int]:
    stage = int(_part(optimizers[0], "zero_stage", folder))
    count = _part(optimizers[0], "partition_count", folder)
    ranks = max(count) if isinstance(count, list) else int(count)
    if stage not in (1, 2, 3):
        raise CheckpointError(f"{folder}: written by ZeRO stage {stage}; stages 1, 2 and 3 can be read")
    if ranks != len(optimizers):
        raise CheckpointError(f"{folder}: written by {ranks} ranks, but the files of {len(optimizers)} are here")
    return stage, ranks


def _frozen(folder: Path, model_states: Sequence[JsonObject], stage: int) -> Iterator[tuple[str, Tensor]]:
    for name, shape in dict(model_states[0].get("frozen_param_shapes") or {}).items():
        owners = model_states if stage == 3 else model_states[:1]
        pieces = [_part(states.get("frozen_param_fragments"), name, folder) for states in owners]
        yield name, _shaped(folder, name, torch.cat([piece.reshape(-1) for piece in pieces]), shape)


def _from_groups(
    folder: Path, shapes: Sequence[JsonObject], groups: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Cut the joined vector of each parameter group (stages 1 and 2)."""
    if any(len(owned) != len(shapes) for owned in groups):
        raise CheckpointError(f"{folder}: {len(shapes)} parameter groups are named, another number is stored")
    alignment = 2 * len(groups)  # padding stays below one such step, in a vector and in the count of its parameters
    for index, named in enumerate(shapes):
        pieces = [owned[index] for owned in groups]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        start = 0
        for name, shape in named.items():
            count = math.prod(shape)
            yield name, _shaped(folder, name, flat[start : start + count], shape)
            start += count
        if math.ceil(start / alignment) != math.ceil(flat.numel() / alignment):
            raise CheckpointError(f"{folder}: group {index} names {start} values and stores {flat.numel()}")


def _from_pieces(
    folder: Path, shapes: Sequence[JsonObject], groups: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Join the pieces of each parameter (stage 3); the vectors of a rank are concatenated."""
    flats = [owned[0] if len(owned) == 1 else torch.cat(list(owned)) for owned in groups]
    start = 0
    for named in shapes:
        for name, shape in named.items():
            share = math.ceil(math.prod(shape) / len(flats))
            yield name, _shaped(folder, name, torch.cat([flat[start : start + share] for flat in flats]), shape)
            start += share
    if any(flat.numel() != start for flat in flats):
        raise CheckpointError(f"{folder}: {start} values per rank are named, {flats[0].numel()} are stored")


def _shaped(folder: Path, name: str, flat: Tensor, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    if flat.numel() < count:
        raise CheckpointError(f"{folder}: {name} {list(shape)} is cut short; files of a rank are damaged or mixed up")
    return flat[:count].view(tuple(shape))


def _half_precision(folder: Path, states: JsonObject) -> dict[str, Tensor]:
    """Without optimizer files, the weights that the forward pass used; stage 3 keeps none in one place."""
    tensors = {name: value for name, value in states["module"].items() if isinstance(value, Tensor)}
    if not tensors or any(_RANK.search(file.name) for file in folder.glob("*_model_states.pt")):
        raise CheckpointError(f"{folder}: the *_optim_states.pt files, which hold the weights, are not in it")
    return tensors


def _client(states: JsonObject) -> JsonObject:
    return {key: value for key, value in states.items() if key not in ("module", "optimizer", "lr_scheduler")}
