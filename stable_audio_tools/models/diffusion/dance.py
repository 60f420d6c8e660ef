"""The attention U-Net of Dance Diffusion (Zach Evans, 2022): nested levels of residual convolutions over waveforms.

x, fourier features of t, condition -> [conv x3 -> (down -> ... -> up) | skip -> conv x3]
"""

import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.activations import Snake1d
from stable_audio_tools.models.diffusion.backbones import halve_parameters, takes_options_of
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModel
from stable_audio_tools.models.diffusion.unconditional import DiffusionModel
from stable_audio_tools.models.fourier import FourierFeatures
from stable_audio_tools.models.precision import weight_dtype

Positive = Annotated[int, Field(ge=1)]

# One side of the symmetric 8-tap kernel that halves and doubles rates.
_CUBIC = (-0.01171875, -0.03515625, 0.11328125, 0.43359375)
_TIME_FEATURES = 16
_HEAD_CHANNELS = 32


class CubicDownsample(nn.Module):
    """Half the rate: (b, c, n) -> (b, c, n / 2)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([*_CUBIC, *_CUBIC[::-1]]))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv1d(F.pad(x, (3, 3), "reflect"), _per_channel(self.kernel, x), stride=2, groups=channels)


class CubicUpsample(nn.Module):
    """Twice the rate: (b, c, n) -> (b, c, 2 * n)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 2 * torch.tensor([*_CUBIC, *_CUBIC[::-1]]))

    def forward(self, x: Tensor) -> Tensor:
        x, weight = F.pad(x, (2, 2), "reflect"), _per_channel(self.kernel, x)
        return F.conv_transpose1d(x, weight, stride=2, padding=7, groups=x.shape[1])


def _per_channel(kernel: Tensor, x: Tensor) -> Tensor:
    return kernel.to(x).expand(x.shape[1], 1, -1)


def _learned_upsample(channels: int, factor: int) -> nn.Module:
    if factor == 1:
        return nn.Conv1d(channels, channels, 3, padding=1)
    odd = factor % 2
    return nn.ConvTranspose1d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2 + odd, output_padding=odd
    )


class ResConvBlock(nn.Module):
    """Two convolutions and a residual, of which the last of the net keeps neither norm nor activation."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        is_last: bool = False,
        kernel_size: int = 5,
        conv_bias: bool = True,
        *,
        use_snake: bool = False,
    ) -> None:
        super().__init__()
        activation: Callable[[int], nn.Module] = Snake1d if use_snake else lambda channels: nn.GELU()
        padding = kernel_size // 2
        self.main = nn.Sequential(
            nn.Conv1d(in_channels, mid_channels, kernel_size, padding=padding, bias=conv_bias),
            nn.GroupNorm(1, mid_channels),
            activation(mid_channels),
            nn.Conv1d(mid_channels, out_channels, kernel_size, padding=padding, bias=conv_bias),
            *([] if is_last else [nn.GroupNorm(1, out_channels), activation(out_channels)]),
        )
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.skip(x)
        return out


class SelfAttention1d(nn.Module):
    """Residual self-attention over the frames of (b, c, n).

    The original computed on a GPU without turning the heads' (time, channel) outputs back to (channel, time) before
    the projection, on a CPU with. `untransposed` reproduces the former, for weights trained so.
    """

    def __init__(self, channels: int, num_heads: int, untransposed: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.untransposed = untransposed
        self.norm = nn.GroupNorm(1, channels)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.out_proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv_proj(self.norm(x)).unflatten(1, (3, self.num_heads, -1))
        q, k, v = heads.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (b, h, n, c / h)
        if not self.untransposed:
            mixed = mixed.transpose(-1, -2)
        out: Tensor = x + self.out_proj(mixed.reshape(x.shape))
        return out


class SkipBlock(nn.Module):
    """A level around all deeper levels; its input is concatenated to its output."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.main(x), x], dim=1)


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Mistakes that only several keys together show."""
    depth = config.depth
    if config.kernel_size % 2 == 0:
        yield "kernel_size", f"is {config.kernel_size}, and must be odd to keep lengths: use {config.kernel_size + 1}"
    if len(config.channels) < depth:
        yield "channels", f"has {len(config.channels)} entries, depth is {depth}: give one for each level"
    if len(config.strides) < depth - 1:
        yield "strides", f"has {len(config.strides)} entries, depth is {depth}: give {depth - 1}"
    steep = [stride for stride in config.strides[: depth - 1] if stride > 2]
    if steep and not config.learned_resample:
        yield "strides", f"{steep[0]} needs learned_resample: true; fixed kernels resample by 2"
    if config.cond_noise_aug and not config.cond_dim:
        yield "cond_noise_aug", "needs cond_dim, the width of the condition that noise is added to"
    attended = [level for level in range(2, depth + 1) if _attends(level, depth, config.n_attn_layers)]
    for index in sorted({index for level in attended for index in (level - 2, level - 1)}):
        width = config.channels[index] if index < len(config.channels) else _HEAD_CHANNELS
        if width % _HEAD_CHANNELS:
            multiple = math.ceil(width / _HEAD_CHANNELS) * _HEAD_CHANNELS
            yield (
                f"channels[{index}]",
                f"is {width}; a level with attention (n_attn_layers is {config.n_attn_layers}) has heads of "
                f"{_HEAD_CHANNELS} channels: use {multiple}",
            )


def _attends(level: int, depth: int, n_attn_layers: int) -> bool:
    return n_attn_layers > 0 and level >= depth - n_attn_layers


def _facts(config: SimpleNamespace) -> dict[str, object]:
    return {
        "io_channels": config.io_channels,
        "input_concat_dim": config.cond_dim,
        "length_multiple": math.prod(config.strides[: config.depth - 1]),
    }


@register("unconditional", "DAU1d", check=_check, facts=_facts)
class DiffusionAttnUnet1D(DiffusionModel):
    """The U-Net of Dance Diffusion, or with a condition the U-Net of its diffusion autoencoders."""

    def __init__(
        self,
        io_channels: Annotated[int, Field(ge=1, description="channels in and out")] = 2,
        depth: Annotated[int, Field(ge=1, description="levels, counting the one at full rate")] = 14,
        n_attn_layers: Annotated[int, Field(ge=0, description="levels with attention, and one more above")] = 6,
        channels: Annotated[Sequence[Positive], Field(description="width of each level")] = (
            *(128, 128, 256, 256),
            *(512,) * 10,
        ),
        cond_dim: Annotated[int, Field(ge=0, description="channels of the concatenated condition")] = 0,
        cond_noise_aug: Annotated[bool, Field(description="add noise of a random, known level to the condition")] = (
            False
        ),
        kernel_size: Annotated[int, Field(ge=1, description="odd")] = 5,
        learned_resample: Annotated[bool, Field(description="resample by strided convolutions")] = False,
        strides: Annotated[Sequence[Positive], Field(description="downsampling between levels")] = (2,) * 13,
        conv_bias: Annotated[bool, Field(description="biases in the residual convolutions")] = True,
        use_snake: Annotated[bool, Field(description="snake activations instead of GELU")] = False,
        untransposed_attention: Annotated[
            bool, Field(description="attention as the original computed it on CUDA, for weights trained there")
        ] = False,
    ) -> None:
        super().__init__()
        self.io_channels = io_channels
        self.cond_dim = cond_dim
        self.cond_noise_aug = cond_noise_aug
        self.strides = tuple(strides[: depth - 1])
        self.has_fixed_kernels = not learned_resample and any(stride == 2 for stride in self.strides)
        self.timestep_embed = FourierFeatures(1, _TIME_FEATURES)
        self._noise_levels: torch.quasirandom.SobolEngine | None = None

        def conv(width_in: int, middle: int, width_out: int, is_last: bool = False) -> ResConvBlock:
            return ResConvBlock(
                width_in,
                middle,
                width_out,
                kernel_size=kernel_size,
                conv_bias=conv_bias,
                use_snake=use_snake,
                is_last=is_last,
            )

        def attention(width: int) -> nn.Module:
            return SelfAttention1d(width, width // _HEAD_CHANNELS, untransposed_attention)

        inner: nn.Module = nn.Identity()
        for level in range(depth, 1, -1):
            above, width, stride = channels[level - 2], channels[level - 1], strides[level - 2]
            attend = attention if _attends(level, depth, n_attn_layers) else nn.Identity
            learned = learned_resample or stride == 1
            joined = width if level == depth else 2 * width
            inner = SkipBlock(
                nn.Conv1d(above, above, 2 * stride + 1, stride=stride, padding=stride)
                if learned
                else CubicDownsample(),
                *_alternate(conv, attend, [(above, width, width), (width, width, width), (width, width, width)]),
                inner,
                *_alternate(conv, attend, [(joined, width, width), (width, width, width), (width, width, above)]),
                _learned_upsample(above, stride) if learned else CubicUpsample(),
            )
        width = channels[0]
        entry = io_channels + cond_dim + _TIME_FEATURES * (2 if cond_noise_aug else 1)
        self.net = nn.Sequential(
            conv(entry, width, width),
            conv(width, width, width),
            conv(width, width, width),
            inner,
            conv(2 * width if depth > 1 else width, width, width),
            conv(width, width, width),
            conv(width, width, io_channels, is_last=True),
        )
        halve_parameters(self.net)

    def forward(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, cond_aug_scale: float | None = None, **_: object
    ) -> Tensor:
        """x (b, c, n), t (b,) from 0 at data to 1 at noise, cond (b, cond_dim, any length) -> (b, c, n)

        `cond_aug_scale` fixes the noise level of the condition, which is otherwise drawn from [0, 1].
        """
        self._check_input(x, cond)
        dtype = weight_dtype(self.net)
        x = x.to(dtype)
        inputs = [x, self._planes(t, x)]
        if cond is not None:
            cond = cond.to(dtype)
            if cond.shape[-1] != x.shape[-1]:
                cond = F.interpolate(cond, x.shape[-1], mode="linear", align_corners=False)
            if self.cond_noise_aug:
                level = self._draw_noise_levels(len(cond), cond_aug_scale).to(cond.device)
                cond = cond + torch.randn_like(cond) * level[:, None, None].to(cond.dtype)
                inputs.append(self._planes(level, x))
            inputs.append(cond)
        out: Tensor = self.net(torch.cat(inputs, dim=1))
        return out

    def _planes(self, level: Tensor, x: Tensor) -> Tensor:
        """Features of a noise level at every sample, (b, 16, n)."""
        return self.timestep_embed(level[:, None]).to(x.dtype)[..., None].expand(-1, -1, x.shape[-1])

    def _draw_noise_levels(self, count: int, fixed: float | None) -> Tensor:
        if fixed is not None:
            return torch.full((count,), float(fixed))
        if self._noise_levels is None:
            self._noise_levels = torch.quasirandom.SobolEngine(1, scramble=True)
        return self._noise_levels.draw(count)[:, 0]

    def _check_input(self, x: Tensor, cond: Tensor | None) -> None:
        length, step = x.shape[-1], math.prod(self.strides)
        # Reflection at the lowest rates needs three frames there.
        shortest = 3 * step if self.has_fixed_kernels else step
        if length % step or length < shortest:
            valid = max(math.ceil(length / step) * step, shortest)
            raise ValueError(
                f"input of {length} samples: the strides multiply to {step}, so lengths are multiples of {step} "
                f"from {shortest} on; pad to {valid}"
            )
        given = 0 if cond is None else cond.shape[1]
        if given != self.cond_dim:
            raise ValueError(f"the condition has {given} channels, cond_dim is {self.cond_dim}")


def _alternate(
    conv: Callable[[int, int, int], nn.Module],
    attend: Callable[[int], nn.Module],
    widths: list[tuple[int, int, int]],
) -> Iterator[nn.Module]:
    """A convolution block of each (in, middle, out), each followed by attention at its output width."""
    for width_in, middle, width_out in widths:
        yield conv(width_in, middle, width_out)
        yield attend(width_out)


@register("diffusion", "DAU1d", check=_check, facts=_facts)
@register("diffusion_decoder", "DAU1d", check=_check, facts=_facts)
@takes_options_of(DiffusionAttnUnet1D)
class DAU1DCondWrapper(ConditionedDiffusionModel):
    """Dance Diffusion's U-Net with the condition concatenated to its input channels."""

    def __init__(self, **options: Any) -> None:
        super().__init__(supports_input_concat=True)
        self.model = DiffusionAttnUnet1D(**options)
        self.io_channels = self.model.io_channels
        halve_parameters(self.model)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        *_: object,
        **__: object,
    ) -> Tensor:
        """x (b, c, n), t (b,) from 0 at data to 1 at noise -> (b, c, n); what else is given has no effect"""
        out: Tensor = self.model(x, t, cond=input_concat_cond)
        return out
