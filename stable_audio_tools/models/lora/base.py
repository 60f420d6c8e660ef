"""The frozen base of an adapter: its precision, its dense weights, and the hashes that identify it.

Hashes are of samples of the adapted weights, rounded to each precision: a base that was loaded in bfloat16 is the same
model as its float32 file. Two models are compared in a precision that both reach by one rounding.
"""

import hashlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.packages import require
from stable_audio_tools.models.lora.config import BasePrecision

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_KEPT = {"pretransform", "lora_factors"}  # autoencoders decode to noise in bfloat16


def cast_base(model: nn.Module, precision: BasePrecision, targets: Mapping[str, nn.Module]) -> None:
    """Cast the base to a precision; `int8` and `nf4` quantise the Linear targets and cast the rest to bfloat16.

    The pretransform and other adapters keep theirs. Quantised weights are packed when the model moves to its device.
    """
    if precision in _DTYPES:
        _cast(model, _DTYPES[precision])
        return
    chosen = [path for path, layer in targets.items() if type(layer) is nn.Linear]
    if not chosen:
        raise UserError(
            f"base_precision {precision}: none of the adapted layers is a Linear, which alone can be quantised"
        )
    bnb = require("bitsandbytes")
    quantized = {path: _quantized(bnb, model.get_submodule(path), precision) for path in chosen}
    _cast(model, torch.bfloat16)
    for path, layer in quantized.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)


def is_quantized(layer: nn.Module) -> bool:
    """Return True if the weights are packed by bitsandbytes."""
    return type(layer.weight).__name__ in ("Params4bit", "Int8Params")


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a layer as a matrix (rows, cols), without its gradient."""
    weight: Any = layer.weight
    if not is_quantized(layer):
        matrix: Tensor = weight.detach().flatten(1)
        return matrix
    functional = require("bitsandbytes").functional
    if type(weight).__name__ == "Params4bit":
        unpacked: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
        return unpacked
    state: Any = layer.state  # takes the weight over in the first pass
    packed, scales = (weight.CB, weight.SCB) if state.CB is None else (state.CB, state.SCB)
    return packed.float() * (scales[:, None] / 127)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not _KEPT & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def _quantized(bnb: ModuleType, layer: nn.Module, precision: str) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    sizes = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": layer.bias is not None}
    quantized: nn.Module
    if precision == "int8":
        quantized = bnb.nn.Linear8bitLt(**sizes, has_fp16_weights=False)
        weight = bnb.nn.Int8Params(layer.weight.data.half(), requires_grad=False)
    else:
        quantized = bnb.nn.Linear4bit(**sizes, quant_type="nf4", compute_dtype=torch.bfloat16)
        weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    quantized.weight = weight
    if layer.bias is not None:
        quantized.bias = layer.bias
    return quantized.to(layer.weight.device)


_SAMPLES = 4096  # of each tensor, evenly spaced: a fine-tune moves nearly every value
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def base_facts(model: nn.Module, paths: Iterable[str]) -> dict[str, object]:
    """Return the facts that identify a base: hashes of the weights at these paths, in every precision they round to."""
    samples = []
    for layer in (model.get_submodule(path) for path in sorted(paths)):
        kept = getattr(layer, "kept_weights", None)  # of a layer that adapters are merged into
        tensors = kept or dict(layer.named_parameters(recurse=False))
        weight = tensors["weight_v" if "weight_v" in tensors else "weight"].detach().flatten()
        samples.append(weight[:: max(1, weight.numel() // _SAMPLES)][:_SAMPLES].cpu())
    hashes: dict[str, str] = {}
    types = {sample.dtype for sample in samples}
    for name, precision in _PRECISIONS.items():
        if len(types) == 1 and (precision in types or types <= {torch.float32, torch.float64}):
            digest = hashlib.sha256()
            for sample in samples:
                digest.update(sample.to(precision).float().numpy().tobytes())
            hashes[name] = digest.hexdigest()[:16]
    return {"base_hashes": hashes}


def same_weights(ours: Mapping[str, object], theirs: Mapping[str, object]) -> bool | None:
    """Return True if two `base_facts` are of the same weights, None if they cannot be compared."""
    mine, others = ours.get("base_hashes"), theirs.get("base_hashes")
    if not isinstance(mine, Mapping) or not isinstance(others, Mapping):
        return None
    shared = [name for name in mine if name in others]
    return all(mine[name] == others[name] for name in shared) if shared else None
