"""Convolutions that keep `frames = ceil(samples / stride)`, with the odd sample of padding on the left.

stride 2, kernel 5, n = 6:   0 0 [1 2 3 4 5 6] 0      three windows, at 1, 3, 5
n = 5:                       0 0 [1 2 3 4 5] 0 + 0    one more zero completes the last window
"""

from torch import Tensor, nn
from torch.nn import functional as F


class SameConv1d(nn.Conv1d):
    """Zero-padded convolution: (b, c, n) -> (b, c', ceil(n / stride))."""

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        width = (self.kernel_size[0] - 1) * self.dilation[0] + 1 - stride
        completing = -x.shape[-1] % stride
        return super().forward(F.pad(x, (width - width // 2, width // 2 + completing)))


class SameConvTranspose1d(nn.ConvTranspose1d):
    """Transposed convolution trimmed to (b, c', n * stride)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        excess = self.kernel_size[0] - self.stride[0]
        y = super().forward(x, output_size)
        return y[..., excess - excess // 2 : y.shape[-1] - excess // 2]


def downsampling(in_channels: int, out_channels: int, factor: int, kernel_multiplier: int) -> nn.Module:
    """`kernel_multiplier` counts strides under the kernel, which has one more tap to be centred."""
    return SameConv1d(in_channels, out_channels, factor * kernel_multiplier + 1, stride=factor)


def upsampling(in_channels: int, out_channels: int, factor: int, nearest: bool) -> nn.Module:
    """Transposed convolution, or repetition followed by a convolution."""
    if factor == 1:
        return SameConv1d(in_channels, out_channels, 3)
    if nearest:
        return nn.Sequential(nn.Upsample(scale_factor=factor), SameConv1d(in_channels, out_channels, 3))
    return SameConvTranspose1d(in_channels, out_channels, factor * 2, stride=factor)
