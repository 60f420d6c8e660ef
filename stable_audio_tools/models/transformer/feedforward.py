"""Position-wise feed-forward: SwiGLU by default, optionally by convolution over time."""

import math

import torch
from torch import Tensor, nn


class Transpose(nn.Module):
    """(b, n, d) <-> (b, d, n)"""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Sine(nn.Module):
    """sin(pi x), a periodic activation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(math.pi * x)


class GLU(nn.Module):
    """Half of the projection, gated by the activated other half (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int, activation: nn.Module) -> None:
        super().__init__()
        self.act = activation
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = self.act(gate)
        # The projection is the widest tensor of a transformer: where no gradient needs it, it is written over.
        out: Tensor = value * gate if value.requires_grad else value.mul_(gate)
        return out


class FeedForward(nn.Module):
    """Widen by `mult`, activate, narrow: (b, n, dim) -> (b, n, dim_out)."""

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: float = 4,
        no_bias: bool = False,
        glu: bool = True,
        use_conv: bool = False,
        conv_kernel_size: int = 3,
        zero_init_output: bool = True,
        sinusoidal: bool = False,
    ) -> None:
        super().__init__()
        if use_conv and conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size is {conv_kernel_size}; it must be odd to keep lengths")
        inner = int(dim * mult)

        def project(width_in: int, width_out: int) -> nn.Module:
            if use_conv:
                padding = conv_kernel_size // 2
                return nn.Conv1d(width_in, width_out, conv_kernel_size, padding=padding, bias=not no_bias)
            return nn.Linear(width_in, width_out, bias=not no_bias)

        def turn() -> nn.Module:
            return Transpose() if use_conv else nn.Identity()

        activation: nn.Module = Sine() if sinusoidal else nn.SiLU()
        # A gated input projection is linear, and has biases, in any case.
        widen: nn.Module = (
            GLU(dim, inner, activation) if glu else nn.Sequential(turn(), project(dim, inner), turn(), activation)
        )
        narrow = project(inner, dim if dim_out is None else dim_out)
        if zero_init_output:
            for parameter in narrow.parameters():
                nn.init.zeros_(parameter)
        self.use_conv = use_conv
        self.ff = nn.Sequential(widen, turn(), narrow, turn())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (b, n) is False at padding, which convolutions then see as the end of the sequence."""
        if mask is None or not self.use_conv:
            out: Tensor = self.ff(x)
        else:
            seen = mask[..., None].to(x.dtype)
            widen, turn, narrow, turn_back = self.ff
            out = turn_back(narrow(turn(widen(x * seen) * seen)))
        return out
