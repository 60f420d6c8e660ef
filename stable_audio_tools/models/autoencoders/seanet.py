"""SEANet, the encoder and decoder of EnCodec (Défossez et al. 2022), with encodec's state-dict names.

A convolution pads its input so that its last window is full: ceil(n / ratio) frames for any length n, and exactly
t * ratio samples back, odd ratios included. With `causal`, the fixed padding is all on the left, and the surplus of a
transposed convolution is cut on the right. Nothing depends on later input, except that `pad_mode` "reflect" mirrors the
first samples to the left of the clip ("constant" does not). Upsampling by r = 2, with kernel 2r:

    frames    a     b     c
    output    a  a  ab ab bc bc c  c
    causal    a  a  ab ab bc bc             cut on the right
    centred      a  ab ab bc bc c           cut by half on either side
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.autoencoders.layers import (
    Conv1d,
    ConvTranspose1d,
    as_image,
    keeps_channels_innermost,
)
from stable_audio_tools.models.autoencoders.levels import Count, describe_coder
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, WNConvTranspose1d

Norm = Literal["none", "weight_norm", "spectral_norm", "time_layer_norm", "layer_norm", "time_group_norm"]
PadMode = Literal["reflect", "replicate", "circular", "constant"]

_Ratios = Annotated[Sequence[Count], Field(min_length=1)]
_Params = JsonObject | None
_Norm = Annotated[Norm, Field(description="norm of the convolutions; encodec's time_layer_norm normalises nothing")]
_Activation = Annotated[str, Field(description="class in torch.nn")]
_ActivationParams = Annotated[_Params, Field(description="keywords of the activation; null: alpha 1 for ELU")]
_Lstm = Annotated[int, Field(ge=0, description="layers of recurrence between the convolutions and the latents")]
_Compress = Annotated[int, Field(ge=1, description="residual branches are this many times narrower")]
_TrueSkip = Annotated[bool, Field(description="residual units add their input as it is, without a convolution")]
_Dilation = Annotated[int, Field(ge=1, description="ratio of the dilations of successive residual units")]


class ConvLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (b, c, n)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


def make_norm(channels: int, norm: Norm, params: JsonObject) -> nn.Module:
    """Build the norm after a convolution; norms of weights need none."""
    if norm == "layer_norm":
        return ConvLayerNorm(channels, **params)
    if norm == "time_group_norm":
        return nn.GroupNorm(1, channels, **params)
    return nn.Identity()


class NormConv1d(nn.Module):
    """A convolution and its norm."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, params: JsonObject, **options: Any) -> None:
        super().__init__()
        conv_class = WNConv1d if norm == "weight_norm" else Conv1d
        conv = conv_class(in_channels, out_channels, **options)
        self.conv = spectral_norm(conv) if norm == "spectral_norm" else conv
        self.norm = make_norm(out_channels, norm, params)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class NormConvTranspose1d(nn.Module):
    """A transposed convolution and its norm."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, params: JsonObject, **options: Any) -> None:
        super().__init__()
        conv_class = WNConvTranspose1d if norm == "weight_norm" else ConvTranspose1d
        convtr = conv_class(in_channels, out_channels, **options)
        self.convtr = spectral_norm(convtr) if norm == "spectral_norm" else convtr
        self.norm = make_norm(out_channels, norm, params)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convtr(x))


class ConvStyle:
    """Settings that all convolutions of a network share."""

    def __init__(self, norm: Norm, norm_params: _Params, causal: bool, pad_mode: PadMode) -> None:
        self.norm = norm
        self.norm_params = norm_params or {}
        self.causal = causal
        self.pad_mode = pad_mode


class SConv1d(nn.Module):
    """Convolution to ceil(n / stride) frames, padded by `style.pad_mode`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style: ConvStyle,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = NormConv1d(
            in_channels,
            out_channels,
            style.norm,
            style.norm_params,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
        )
        self.stride = stride
        self.fixed_padding = (kernel_size - 1) * dilation - (stride - 1)
        self.surplus = self.fixed_padding - kernel_size  # with n, modulo the stride: samples past the last full window
        self.causal = style.causal
        self.pad_mode = style.pad_mode

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c', ceil(n / stride))
        right = 0 if self.causal else self.fixed_padding // 2
        fill = -(x.shape[-1] + self.surplus) % self.stride
        return self.conv(pad(x, self.fixed_padding - right, right + fill, self.pad_mode))


def pad(x: Tensor, left: int, right: int, mode: PadMode) -> Tensor:
    """Pad like `F.pad`; a signal shorter than its reflection is extended by silence first, and cut afterwards."""
    missing = max(left, right) + 1 - x.shape[-1] if mode == "reflect" else 0
    if missing > 0:
        return pad(F.pad(x, (0, missing)), left, right, mode)[..., :-missing]
    if keeps_channels_innermost(x):
        return F.pad(as_image(x), (left, right, 0, 0), mode=mode).squeeze(2)
    return F.pad(x, (left, right), mode=mode)


class SConvTranspose1d(nn.Module):
    """Transposed convolution to exactly t * stride samples."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style: ConvStyle,
        stride: int = 1,
        trim_right_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.convtr = NormConvTranspose1d(
            in_channels, out_channels, style.norm, style.norm_params, kernel_size=kernel_size, stride=stride
        )
        surplus = kernel_size - stride
        self.trim_right = math.ceil(surplus * trim_right_ratio) if style.causal else surplus // 2
        self.trim_left = surplus - self.trim_right

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t) -> (b, c', t * stride)
        upsampled = self.convtr(x)
        return upsampled[..., self.trim_left : upsampled.shape[-1] - self.trim_right]


class SLSTM(nn.Module):
    """x plus the output of a stack of LSTM layers running forward in time."""

    def __init__(self, dimension: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dimension, dimension, num_layers)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t) -> (b, c, t)
        steps = x.permute(2, 0, 1)
        return (self.lstm(steps)[0] + steps).permute(1, 2, 0)


class SEANetResnetBlock(nn.Module):
    """Two convolutions, the first dilated, around a narrower middle; added to the input."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilation: int,
        make_activation: "ActivationMaker",
        style: ConvStyle,
        compress: int,
        true_skip: bool,
    ) -> None:
        super().__init__()
        hidden = channels // compress
        self.block = nn.Sequential(
            make_activation(),
            SConv1d(channels, hidden, kernel_size, style, dilation=dilation),
            make_activation(),
            SConv1d(hidden, channels, 1, style),
        )
        self.shortcut = nn.Identity() if true_skip else SConv1d(channels, channels, 1, style)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, n)
        return self.shortcut(x) + self.block(x)


class ActivationMaker:
    """A factory for one kind of activation."""

    def __init__(self, name: str, params: _Params) -> None:
        self.make = getattr(nn, name)
        self.params = params if params is not None else ({"alpha": 1.0} if name == "ELU" else {})

    def __call__(self) -> nn.Module:
        activation: nn.Module = self.make(**self.params)
        return activation


def check_seanet(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Yield (key, sentence) for each problem of a SEANet config."""
    for key in ("activation", "final_activation"):
        name = getattr(config, key, None)
        activation = getattr(nn, name, None) if name else nn.Identity
        if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
            yield key, f"torch.nn has no activation {name!r}; examples: ELU, ReLU, GELU, Tanh"
    if config.causal and config.norm == "time_group_norm":
        yield "norm", "time_group_norm takes statistics over all time, so it cannot be causal; set causal to false"
    if not config.causal and getattr(config, "trim_right_ratio", 1.0) != 1.0:
        yield "trim_right_ratio", "has a meaning only where causal is true; set causal to true or leave it at 1.0"


def _describe(channels: str, config: SimpleNamespace) -> JsonObject:
    return describe_coder(config, channels, channels_key="channels", latent_key="dimension", ratio_key="ratios")


@register(
    "encoder",
    "seanet",
    facts=partial(_describe, "in_channels"),
    check=check_seanet,
)
class SEANetEncoder(nn.Module):
    """EnCodec's encoder."""

    pads_to_frames = True  # ceil(n / ratio) frames for audio of any length

    def __init__(
        self,
        channels: Annotated[int, Field(ge=1, description="audio channels")] = 1,
        dimension: Annotated[int, Field(ge=1, description="output channels; twice the model's for a vae")] = 128,
        n_filters: Annotated[int, Field(ge=1, description="channels at the rate of the audio")] = 32,
        n_residual_layers: Annotated[int, Field(ge=0, description="residual units per level")] = 1,
        ratios: Annotated[_Ratios, Field(description="stride of each level, from audio to latents")] = (2, 2, 2, 2, 2),
        activation: _Activation = "ELU",
        activation_params: _ActivationParams = None,
        norm: _Norm = "weight_norm",
        norm_params: _Params = None,
        kernel_size: Count = 7,
        last_kernel_size: Count = 7,
        residual_kernel_size: Count = 3,
        dilation_base: _Dilation = 2,
        causal: Annotated[bool, Field(description="pad on the left only; needs no later input")] = False,
        pad_mode: PadMode = "reflect",
        true_skip: _TrueSkip = False,
        compress: _Compress = 2,
        lstm: _Lstm = 2,
    ) -> None:
        super().__init__()
        style = ConvStyle(norm, norm_params, causal, pad_mode)
        make_activation = ActivationMaker(activation, activation_params)
        width = n_filters
        layers: list[nn.Module] = [SConv1d(channels, width, kernel_size, style)]
        for ratio in ratios:
            layers += [
                SEANetResnetBlock(
                    width, residual_kernel_size, dilation_base**unit, make_activation, style, compress, true_skip
                )
                for unit in range(n_residual_layers)
            ]
            layers += [make_activation(), SConv1d(width, 2 * width, 2 * ratio, style, stride=ratio)]
            width *= 2
        if lstm:
            layers.append(SLSTM(width, lstm))
        layers += [make_activation(), SConv1d(width, dimension, last_kernel_size, style)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, d, t)
        return self.model(x).contiguous()


@register(
    "decoder",
    "seanet",
    facts=partial(_describe, "out_channels"),
    check=check_seanet,
)
class SEANetDecoder(nn.Module):
    """EnCodec's decoder."""

    def __init__(
        self,
        channels: Annotated[int, Field(ge=1, description="audio channels")] = 1,
        dimension: Annotated[int, Field(ge=1, description="channels of the latents")] = 128,
        n_filters: Annotated[int, Field(ge=1, description="channels at the rate of the audio")] = 32,
        n_residual_layers: Annotated[int, Field(ge=0, description="residual units per level")] = 1,
        ratios: Annotated[_Ratios, Field(description="factor of each level, from latents to audio")] = (8, 5, 4, 2),
        activation: _Activation = "ELU",
        activation_params: _ActivationParams = None,
        final_activation: Annotated[str | None, Field(description="class in torch.nn, such as Tanh")] = None,
        final_activation_params: _Params = None,
        norm: _Norm = "weight_norm",
        norm_params: _Params = None,
        kernel_size: Count = 7,
        last_kernel_size: Count = 7,
        residual_kernel_size: Count = 3,
        dilation_base: _Dilation = 2,
        causal: Annotated[bool, Field(description="pad on the left only; needs no later input")] = False,
        pad_mode: PadMode = "reflect",
        true_skip: _TrueSkip = False,
        compress: _Compress = 2,
        lstm: _Lstm = 2,
        trim_right_ratio: Annotated[
            float,
            Field(ge=0, le=1, description="causal only: share of the surplus cut right; below 1 looks ahead"),
        ] = 1.0,
    ) -> None:
        super().__init__()
        style = ConvStyle(norm, norm_params, causal, pad_mode)
        make_activation = ActivationMaker(activation, activation_params)
        width = n_filters * 2 ** len(ratios)
        layers: list[nn.Module] = [SConv1d(dimension, width, kernel_size, style)]
        if lstm:
            layers.append(SLSTM(width, lstm))
        for ratio in ratios:
            step_up = SConvTranspose1d(width, width // 2, 2 * ratio, style, ratio, trim_right_ratio)
            layers += [make_activation(), step_up]
            width //= 2
            layers += [
                SEANetResnetBlock(
                    width, residual_kernel_size, dilation_base**unit, make_activation, style, compress, true_skip
                )
                for unit in range(n_residual_layers)
            ]
        layers += [make_activation(), SConv1d(width, channels, last_kernel_size, style)]
        if final_activation is not None:
            layers.append(ActivationMaker(final_activation, final_activation_params or {})())
        self.model = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:  # (b, d, t) -> (b, c, n)
        return self.model(latents).contiguous()
