"""1-D convolutions that, on a CPU at inference, keep channels innermost in memory.

oneDNN then reads and writes tensors as they lie, where it would reorder them before and after each convolution: wide
layers run up to twice as fast. Shapes stay (b, c, n); only strides differ, and elementwise layers hand them on.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def keeps_channels_innermost(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def as_image(x: Tensor) -> Tensor:
    """(b, c, n) as (b, c, 1, n) with channels innermost in memory; copies only what lies otherwise."""
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _pair(value: tuple[int, ...] | str, other: int) -> Any:
    """A 1-D option as one of (1, n) images; `padding` may be a word."""
    return value if isinstance(value, str) else (other, value[0])


class Conv1d(nn.Conv1d):
    """`nn.Conv1d`, faster on a CPU at inference."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not keeps_channels_innermost(input) or self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        made = F.conv2d(
            as_image(input),
            weight.unsqueeze(2),
            bias,
            _pair(self.stride, 1),
            _pair(self.padding, 0),
            _pair(self.dilation, 1),
            self.groups,
        )
        return made.squeeze(2)


class ConvTranspose1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d`, faster on a CPU at inference."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not keeps_channels_innermost(input) or output_size is not None:
            return super().forward(input, output_size)
        made = F.conv_transpose2d(
            as_image(input),
            self.weight.unsqueeze(2),
            self.bias,
            (1, *self.stride),
            (0, int(self.padding[0])),
            (0, *self.output_padding),
            self.groups,
            (1, *self.dilation),
        )
        return made.squeeze(2)
