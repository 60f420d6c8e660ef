"""Which base model an adapter belongs to: a hash of samples of the adapted weights, in each precision.

A base trained on in bfloat16 is the same model as its float32 file, so hashes are of values rounded to a precision, and
two are compared where both models reach it by one rounding.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 4096  # of each tensor, evenly spaced: a fine-tune moves nearly every value
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def base_facts(model: nn.Module, paths: Iterable[str]) -> dict[str, Any]:
    """What a file tells of its base: hashes of the weights at these paths, in every precision they can be had in."""
    return {"base_hashes": _hashes(model, paths)}


def same_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool | None:
    """Do two `base_facts` tell of the same weights? None: they cannot be compared."""
    mine, others = ours.get("base_hashes") or {}, theirs.get("base_hashes") or {}
    shared = [name for name in mine if name in others]
    return all(mine[name] == others[name] for name in shared) if shared else None


def _hashes(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    layers = [model.get_submodule(path) for path in sorted(paths)]
    samples = [_samples(layer) for layer in layers]
    held = {sample.dtype for sample in samples}
    if len(held) != 1:
        return {}
    (dtype,) = held
    names = [name for name, kind in _PRECISIONS.items() if kind == dtype or dtype in (torch.float32, torch.float64)]
    return {name: _hash(samples, _PRECISIONS[name]) for name in names}


def _samples(layer: nn.Module) -> Tensor:
    kept = getattr(layer, "kept_weights", None)  # of a layer that adapters are merged into
    tensors = kept or dict(layer.named_parameters(recurse=False))
    weight = tensors["weight_v" if "weight_v" in tensors else "weight"].detach().flatten()
    step = max(1, weight.numel() // _SAMPLES)
    return weight[::step][:_SAMPLES].cpu()


def _hash(samples: Iterable[Tensor], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.to(dtype).float().numpy().tobytes())
    return digest.hexdigest()[:16]
