"""The precision in which a network holds its weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_MULTIPLYING = (nn.Linear, nn.modules.conv._ConvNd)  # their weights are what autocast converts


class FullPrecision:
    """Mixin of modules that stay in float32 when the network around them is held in half precision.

    Features of the noise level are an example: in bfloat16, neighbouring levels would be equal.
    """


def _stays_in_float32(part: nn.Module) -> bool:
    """Return whether a part is of `FullPrecision`, or a norm whose config has `force_fp32`."""
    return isinstance(part, FullPrecision) or bool(getattr(part, "force_fp32", False))


def weight_dtype(module: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    """Return the type of the weights; parts that stay in float32 do not count."""
    for part in module.modules():
        if not _stays_in_float32(part):
            for parameter in part.parameters(recurse=False):
                if parameter.is_floating_point():
                    return parameter.dtype
    return default


def hold_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert weights and buffers to `dtype` once instead of in every pass; parts of `FullPrecision` get float32."""
    module.to(dtype)
    for part in module.modules():
        if _stays_in_float32(part):
            part.float()
    return module


def autocast_dtype(weight: Tensor) -> torch.dtype:
    """Return the type to which autocast converts a weight now; that of the weight outside of autocast."""
    kind = weight.device.type
    is_converted = weight.dtype is torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_converted else weight.dtype


@contextmanager
def held_for_autocast(*modules: nn.Module | None) -> Iterator[None]:
    """Hold the weights of products in the type of autocast inside the block, and give the original ones back after it.

    Autocast converts weights that do not train in every pass. Results are the same. Weights of both types exist inside
    the block; without autocast, nothing changes.
    """
    layers = [layer for module in modules if module is not None for layer in module.modules()]
    chosen = [layer for layer in layers if isinstance(layer, _MULTIPLYING) and not _stays_in_float32(layer)]
    # The two factors of a weight norm stay as they are: their product is converted where it is computed.
    weights = [
        weight
        for layer in chosen
        for name, weight in layer.named_parameters(recurse=False)
        if name in ("weight", "bias")
    ]
    originals = [(weight, weight.data) for weight in weights if autocast_dtype(weight) != weight.dtype]
    try:
        for weight, data in originals:
            weight.data = data.to(autocast_dtype(weight))
        yield
    finally:
        for weight, data in originals:
            weight.data = data
