"""Published blocks of one-dimensional networks, which other people's code builds on."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.activations import SnakeBeta, snake
from stable_audio_tools.models.autoencoders.local_attention import AdaRMSNorm
from stable_audio_tools.models.diffusion import dance
from stable_audio_tools.models.diffusion.dance import ResConvBlock, SkipBlock
from stable_audio_tools.models.fourier import FourierFeatures

__all__ = [
    "AdaRMSNorm",
    "Downsample1d",
    "Downsample1d_2",
    "ForcedWNConv1d",
    "FourierFeatures",
    "LinearGEGLU",
    "RMSNorm",
    "ResConvBlock",
    "ResidualBlock",
    "SelfAttention1d",
    "SkipBlock",
    "SnakeBeta",
    "Upsample1d",
    "Upsample1d_2",
    "expand_to_planes",
    "linear_geglu",
    "normalize",
    "rms_norm",
    "snake_beta",
    "zero_init",
]

KernelName = Literal["linear", "cubic", "lanczos3"]

# One side of each symmetric low-pass that halves and doubles rates; the taps sum to 1.
_HALF_KERNELS: dict[KernelName, tuple[float, ...]] = {
    "linear": (1 / 8, 3 / 8),
    "cubic": (-0.01171875, -0.03515625, 0.11328125, 0.43359375),
    "lanczos3": (
        0.003689131001010537,
        0.015056144446134567,
        -0.03399861603975296,
        -0.066637322306633,
        0.13550527393817902,
        0.44638532400131226,
    ),
}


class ResidualBlock(nn.Module):
    """The sum of a sequence of layers and a skip connection."""

    def __init__(self, main: Iterable[nn.Module], skip: nn.Module | None = None) -> None:
        super().__init__()
        self.main = nn.Sequential(*main)
        self.skip = nn.Identity() if skip is None else skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.skip(x)
        return out


class ResidualAttention1d(dance.SelfAttention1d):
    """Residual self-attention over the frames of (b, c, n)."""

    def __init__(self, c_in: int, n_head: int = 1, dropout_rate: float = 0.0) -> None:
        if c_in % n_head:
            raise ValueError(f"c_in is {c_in}; it must be a multiple of n_head, which is {n_head}")
        super().__init__(c_in, n_head, untransposed=False)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(super().forward(x) - x) if self.training and self.dropout.p else super().forward(x)


SelfAttention1d = ResidualAttention1d  # published name


def expand_to_planes(x: Tensor, shape: torch.Size) -> Tensor:
    """Expand vectors (b, c) to constant signals (b, c, n), n from the shape (b, c', n)."""
    return x[..., None].expand(-1, -1, shape[2])


class _Resampler(nn.Module):
    """A fixed low-pass, applied to every channel."""

    kernel: Tensor

    def __init__(self, kernel: KernelName, pad_mode: str, channels_last: bool, gain: float) -> None:
        super().__init__()
        side = _HALF_KERNELS[kernel]
        self.pad_mode = pad_mode
        self.pad = len(side) - 1
        self.channels_last = channels_last
        self.register_buffer("kernel", gain * torch.tensor([*side, *side[::-1]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x.mT).mT if self.channels_last else self.resample(x)

    def resample(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def weight(self, x: Tensor) -> Tensor:
        """Return one filter per channel of x (b, c, n)."""
        return self.kernel.to(x).expand(x.shape[1], 1, -1)


class Downsample1d(_Resampler):
    """Half the rate: (b, c, n) -> (b, c, n / 2), or (b, n, c) with `channels_last`."""

    def __init__(self, kernel: KernelName = "linear", pad_mode: str = "reflect", channels_last: bool = False) -> None:
        super().__init__(kernel, pad_mode, channels_last, gain=1.0)

    def resample(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.pad, self.pad), self.pad_mode)
        return F.conv1d(x, self.weight(x), stride=2, groups=x.shape[1])


class Upsample1d(_Resampler):
    """Twice the rate: (b, c, n) -> (b, c, 2 * n), or (b, n, c) with `channels_last`."""

    def __init__(self, kernel: KernelName = "linear", pad_mode: str = "reflect", channels_last: bool = False) -> None:
        super().__init__(kernel, pad_mode, channels_last, gain=2.0)

    def resample(self, x: Tensor) -> Tensor:
        margin = (self.pad + 1) // 2
        x = F.pad(x, (margin, margin), self.pad_mode)
        return F.conv_transpose1d(x, self.weight(x), stride=2, padding=2 * self.pad + 1, groups=x.shape[1])


def Downsample1d_2(in_channels: int, out_channels: int, factor: int, kernel_multiplier: int = 2) -> nn.Module:
    """Build a learned, strided convolution, (b, c, n) -> (b, c', n / factor)."""
    if kernel_multiplier % 2:
        raise ValueError(f"kernel_multiplier is {kernel_multiplier}; it must be even")
    return nn.Conv1d(
        in_channels,
        out_channels,
        kernel_size=factor * kernel_multiplier + 1,
        stride=factor,
        padding=factor * kernel_multiplier // 2,
    )


def Upsample1d_2(in_channels: int, out_channels: int, factor: int, use_nearest: bool = False) -> nn.Module:
    """Build a learned upsampling, (b, c, n) -> (b, c', n * factor): transposed, or repeated and convolved."""
    if factor == 1 or use_nearest:
        conv = nn.Conv1d(in_channels, out_channels, kernel_size=3, padding=1)
        return conv if factor == 1 else nn.Sequential(nn.Upsample(scale_factor=factor, mode="nearest"), conv)
    odd = factor % 2
    return nn.ConvTranspose1d(
        in_channels, out_channels, 2 * factor, stride=factor, padding=factor // 2 + odd, output_padding=odd
    )


def zero_init(layer: nn.Linear | nn.Conv1d) -> nn.Linear | nn.Conv1d:
    """Set weight and bias of a layer to zero."""
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)
    return layer


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Divide x (..., c) by its root mean square and multiply by `scale`; computed in float32 or more."""
    precise = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), torch.float32)
    power = x.to(precise).square().mean(-1, keepdim=True)
    return x * (scale.to(precise) * (power + eps).rsqrt()).to(x.dtype)


class ShapedRMSNorm(nn.Module):
    """Root mean square norm with a gain for every entry of the shape."""

    scale: Tensor

    def __init__(self, shape: int | tuple[int, ...], fix_scale: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        if fix_scale:
            self.register_buffer("scale", torch.ones(shape))
        else:
            self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, self.eps)


RMSNorm = ShapedRMSNorm  # published name


def normalize(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Scale each entry of the first axis of x to a root mean square of one (Karras et al. 2023)."""
    norm = torch.linalg.vector_norm(x, dim=list(range(1, x.ndim)), keepdim=True)
    return x / (eps + norm * math.sqrt(norm.numel() / x.numel()))


class ForcedWNConv1d(nn.Module):
    """A convolution whose filters keep unit magnitude, in training also where they are stored (Karras et al. 2023)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight))
        return F.conv1d(x, normalize(self.weight) / math.sqrt(self.weight[0].numel()), padding="same")


def linear_geglu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Project to twice the width, and gate one half by the GELU of the other."""
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


class LinearGEGLU(nn.Linear):
    """A linear layer gated by GELU, (..., in_features) -> (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, 2 * out_features, bias=bias)
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        return linear_geglu(x, self.weight, self.bias)


def snake_beta(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return x + sin^2(alpha * x) / beta."""
    return snake(x, alpha, beta)
