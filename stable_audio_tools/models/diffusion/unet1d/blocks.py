"""Convolutions and residual blocks of the U-Net, and the patches at either end of it.

Convolutions keep `frames = ceil(samples / stride)`, with the odd sample of padding on the left.

stride 2, kernel 5, n = 6:   0 0 [1 2 3 4 5 6] 0      three windows, at 1, 3, 5
n = 5:                       0 0 [1 2 3 4 5] 0 + 0    one more zero completes the last window
"""

from dataclasses import dataclass, replace

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.activations import Snake1d


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
    """Create a strided convolution; its kernel spans `kernel_multiplier` strides and one more tap, to be centred."""
    return SameConv1d(in_channels, out_channels, factor * kernel_multiplier + 1, stride=factor)


def upsampling(in_channels: int, out_channels: int, factor: int, nearest: bool) -> nn.Module:
    """Transposed convolution, or repetition followed by a convolution."""
    if factor == 1:
        return SameConv1d(in_channels, out_channels, 3)
    if nearest:
        return nn.Sequential(nn.Upsample(scale_factor=factor), SameConv1d(in_channels, out_channels, 3))
    return SameConvTranspose1d(in_channels, out_channels, factor * 2, stride=factor)


@dataclass(frozen=True)
class BlockOptions:
    """The options shared by all residual blocks of one U-Net."""

    num_groups: int
    mapping_features: int | None  # None: not modulated
    use_snake: bool = False


class ConvBlock(nn.Module):
    """Norm, optional modulation, activation, convolution."""

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.groupnorm = nn.GroupNorm(options.num_groups, in_channels)
        self.activation = Snake1d(in_channels) if options.use_snake else nn.SiLU()
        self.project = SameConv1d(in_channels, out_channels, 3)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        h = self.groupnorm(x)
        if scale_shift is not None:
            scale, shift = scale_shift
            h = h * (1 + scale) + shift
        out: Tensor = self.project(self.activation(h))
        return out


class ScaleShift(nn.Module):
    """The mapping (b, m) as a scale and a shift, (b, c, 1) each."""

    def __init__(self, mapping_features: int, channels: int) -> None:
        super().__init__()
        self.to_scale_shift = nn.Sequential(nn.SiLU(), nn.Linear(mapping_features, 2 * channels))

    def forward(self, mapping: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.to_scale_shift(mapping)[..., None].chunk(2, dim=1)
        return scale, shift


class ResnetBlock(nn.Module):
    """Two convolution blocks and a residual; the mapping modulates the second. (b, c, t) -> (b, c', t)."""

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.block1 = ConvBlock(in_channels, out_channels, options)
        features = options.mapping_features
        self.to_scale_shift = ScaleShift(features, out_channels) if features else None
        self.block2 = ConvBlock(out_channels, out_channels, options)
        self.to_out = nn.Identity() if in_channels == out_channels else SameConv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, mapping: Tensor | None) -> Tensor:
        modulation = None
        if self.to_scale_shift is not None:
            assert mapping is not None
            modulation = self.to_scale_shift(mapping)
        out: Tensor = self.block2(self.block1(x), modulation) + self.to_out(x)
        return out


class Patcher(nn.Module):
    """A residual block, then `patch_size` neighbouring frames become channels: (b, c, n) -> (b, c', n / p)."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, options: BlockOptions) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.block = ResnetBlock(in_channels, out_channels // patch_size, replace(options, num_groups=1))

    def forward(self, x: Tensor, mapping: Tensor | None) -> Tensor:
        return rearrange(self.block(x, mapping), "b c (t p) -> b (c p) t", p=self.patch_size)


class Unpatcher(nn.Module):
    """Channels become `patch_size` neighbouring frames, then a residual block: (b, c, t) -> (b, c', t * p)."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, options: BlockOptions) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.block = ResnetBlock(in_channels // patch_size, out_channels, replace(options, num_groups=1))

    def forward(self, x: Tensor, mapping: Tensor | None) -> Tensor:
        out: Tensor = self.block(rearrange(x, "b (c p) t -> b c (t p)", p=self.patch_size), mapping)
        return out
