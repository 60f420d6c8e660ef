"""EnCodec's multi-scale short-time Fourier discriminator (Défossez et al. 2022)."""

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated

import torch
import torchaudio
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.autoencoders.layers import run_layer
from stable_audio_tools.models.autoencoders.weight_norm import WNConv2d
from stable_audio_tools.models.discriminators.losses import (
    AdversarialName,
    AudioCritic,
    Opinion,
    distances,
    mean,
    relative_distances,
)

Positive = Annotated[int, Field(ge=1)]
Pair = tuple[int, int]


def half_kernel(kernel_size: Pair, dilation: int = 1) -> Pair:
    """Return the padding that keeps the shape; only time is dilated."""
    return (kernel_size[0] - 1) * dilation // 2, (kernel_size[1] - 1) // 2


def growing_widths(filters: int, scale: int, most: int, count: int) -> list[int]:
    """Return the output channels of `count` successive convolutions."""
    return [min(filters * scale**power, most) for power in range(count)]


class NormConv2d(nn.Module):
    """A weight-normalised convolution, nested one level deeper for the names in published files."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = (1, 1), dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = WNConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=(dilation, 1),
            padding=half_kernel(kernel_size, dilation),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class STFTDiscriminator(nn.Module):
    """Convolutions over the complex spectrogram of one resolution, (b, 2 * c, frames, bins)."""

    def __init__(
        self,
        widths: Sequence[int],
        in_channels: int,
        out_channels: int,
        *,
        n_fft: int,
        hop_length: int,
        win_length: int,
        kernel_size: Pair,
        dilations: Sequence[int],
        stride: Pair,
        normalized: bool,
        activation: nn.Module,
        spec_scale_pow: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.spec_scale_pow = spec_scale_pow
        self.checkpointing = checkpointing
        self.activation = activation
        self.spec_transform = torchaudio.transforms.Spectrogram(
            n_fft=n_fft, hop_length=hop_length, win_length=win_length, normalized=normalized, center=False, power=None
        )
        square = (kernel_size[0], kernel_size[0])
        self.convs = nn.ModuleList(
            [
                NormConv2d(2 * in_channels, widths[0], kernel_size),
                *(
                    NormConv2d(before, after, kernel_size, stride, dilation)
                    for before, after, dilation in zip(widths, widths[1:], dilations)
                ),
                NormConv2d(widths[-2], widths[-1], square),
            ]
        )
        self.conv_post = NormConv2d(widths[-1], out_channels, square)

    def forward(self, audio: Tensor) -> Opinion:
        spectrum = self.spec_transform(audio)
        if self.spec_scale_pow != 0.0:
            spectrum = spectrum * (spectrum.abs() + 1e-6).pow(self.spec_scale_pow)
        z = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(-1, -2)
        features = []
        for conv in self.convs:
            z = self.activation(run_layer(conv, z, self.checkpointing))
            features.append(z)
        return Opinion(run_layer(self.conv_post, z, self.checkpointing), features)


class MultiScaleSTFTDiscriminator(nn.Module):
    """One discriminator for each resolution."""

    def __init__(self, discriminators: Sequence[STFTDiscriminator]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, audio: Tensor) -> list[Opinion]:
        return [discriminator(audio) for discriminator in self.discriminators]


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    counts = {key: len(getattr(config, key)) for key in ("n_ffts", "hop_lengths", "win_lengths")}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{key} {count}" for key, count in counts.items())
        yield "n_ffts", f"n_ffts, hop_lengths and win_lengths must have one length, got {lengths}"
    for index, (window, n_fft) in enumerate(zip(config.win_lengths, config.n_ffts)):
        if window > n_fft:
            yield f"win_lengths[{index}]", f"is {window}, longer than n_ffts[{index}], {n_fft}"
    if not hasattr(nn, config.activation):
        yield "activation", f"torch.nn has no {config.activation!r}"


@register("discriminator", "encodec", ignored=("norm",), check=_check)
class EncodecDiscriminator(AudioCritic):
    """Discriminators over complex spectrograms of several resolutions."""

    def __init__(
        self,
        normalize_losses: Annotated[bool, Field(description="relative feature distances")] = False,
        loss_type: Annotated[AdversarialName, Field(description="adversarial loss")] = "hinge",
        *,
        filters: Annotated[int, Field(ge=1, description="channels of the first convolution")],
        in_channels: Runtime[int] = 1,
        out_channels: Annotated[int, Field(ge=1, description="scores per position")] = 1,
        n_ffts: Annotated[Sequence[Positive], Field(description="transform size of each resolution")] = (
            1024,
            2048,
            512,
        ),
        hop_lengths: Annotated[Sequence[Positive], Field(description="hop of each resolution")] = (256, 512, 128),
        win_lengths: Annotated[Sequence[Positive], Field(description="window of each resolution")] = (1024, 2048, 512),
        max_filters: Annotated[int, Field(ge=1, description="most channels of a convolution")] = 1024,
        filters_scale: Annotated[int, Field(ge=1, description="growth of the channels per convolution")] = 1,
        kernel_size: Annotated[Sequence[Positive], Field(min_length=2, max_length=2, description="frames, bins")] = (
            3,
            9,
        ),
        dilations: Annotated[Sequence[Positive], Field(description="dilation in time of each convolution")] = (1, 2, 4),
        stride: Annotated[Sequence[Positive], Field(min_length=2, max_length=2, description="frames, bins")] = (1, 1),
        normalized: Annotated[bool, Field(description="divide spectra by the window's norm")] = True,
        activation: Annotated[str, Field(description="a class of torch.nn")] = "LeakyReLU",
        activation_params: Annotated[
            Mapping[str, float | bool] | None, Field(description="its arguments; null: a slope of 0.2 for LeakyReLU")
        ] = None,
        spec_scale_pow: Annotated[float, Field(description="multiply spectra by this power of their magnitude")] = 0.0,
        checkpointing: Annotated[bool, Field(description="recompute activations in the backward pass")] = True,
    ) -> None:
        super().__init__(loss_type)
        self.normalize_losses = normalize_losses
        if activation_params is None:
            activation_params = {"negative_slope": 0.2} if activation == "LeakyReLU" else {}
        widths = growing_widths(filters, filters_scale, max_filters, len(dilations) + 2)
        self.discriminators = MultiScaleSTFTDiscriminator(
            [
                STFTDiscriminator(
                    widths,
                    in_channels,
                    out_channels,
                    n_fft=n_fft,
                    hop_length=hop_length,
                    win_length=win_length,
                    kernel_size=(kernel_size[0], kernel_size[1]),
                    dilations=dilations,
                    stride=(stride[0], stride[1]),
                    normalized=normalized,
                    activation=getattr(nn, activation)(**activation_params),
                    spec_scale_pow=spec_scale_pow,
                    checkpointing=checkpointing,
                )
                for n_fft, hop_length, win_length in zip(n_ffts, hop_lengths, win_lengths)
            ]
        )

    def forward(self, audio: Tensor) -> list[Opinion]:
        opinions: list[Opinion] = self.discriminators(audio)
        return opinions

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the mean distance over activations and scales; with `normalize_losses` relative to the real ones."""
        apart = relative_distances if self.normalize_losses else distances
        return mean(mean(apart(r, f)) for r, f in zip(real, fake))
