"""The precision in which a network holds its weights."""

import torch
from torch import nn


class FullPrecision:
    """Mixin of modules that stay in float32 when the network around them is held in half precision.

    Features of the noise level are an example: in bfloat16, neighbouring levels would be equal.
    """


def weight_dtype(module: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    """Return the type of the weights; parts that stay in float32 do not count."""
    for part in module.modules():
        if not isinstance(part, FullPrecision):
            for parameter in part.parameters(recurse=False):
                if parameter.is_floating_point():
                    return parameter.dtype
    return default


def hold_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert weights and buffers to `dtype` once instead of in every pass; parts of `FullPrecision` get float32."""
    module.to(dtype)
    for part in module.modules():
        if isinstance(part, FullPrecision) and isinstance(part, nn.Module):
            part.float()
    return module
