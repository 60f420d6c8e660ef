"""BigVGAN's discriminators: periods of the waveform (Lee et al. 2023), sub-bands of constant-Q spectra (Gu 2024).

The constant-Q transform has frequencies in equal ratios, each under a window of equally many periods. The kernels of
the highest octave serve all octaves: for the next lower one the audio is halved in rate, and so is the hop.
"""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import resample

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.autoencoders.layers import kaiser_sinc_filter, run_layer
from stable_audio_tools.models.autoencoders.weight_norm import WNConv2d
from stable_audio_tools.models.discriminators.dac import PERIODS, DACGANLoss
from stable_audio_tools.models.discriminators.encodec import growing_widths, half_kernel
from stable_audio_tools.models.discriminators.losses import (
    AdversarialName,
    AudioCritic,
    GeneratorLosses,
    Opinion,
    distances,
)

_HALFBAND_TAPS = 129


class ConstantQTransform(nn.Module):
    """Complex spectrum of (b, n) around samples 0, hop, 2 * hop, ...: (b, bins, ceil(n / hop)), lowest frequency first.

    Kernels have an absolute sum of 1, and each row is scaled by the square root of its window's samples at the full
    rate: a sinusoid of amplitude a has a magnitude of a / 2 * sqrt(Q * sample_rate / frequency) (Schörkhuber & Klapuri
    2010; the scale of librosa).
    """

    kernels: Tensor
    halfband: Tensor
    scale: Tensor

    def __init__(self, sample_rate: int, hop_length: int, fmin: float, num_octaves: int, bins_per_octave: int) -> None:
        super().__init__()
        top = fmin * 2 ** (num_octaves - 1 / bins_per_octave)
        if top > sample_rate / 2:
            fitting = math.floor(math.log2(sample_rate / 2 / fmin))
            raise ValueError(
                f"{num_octaves} octaves from {fmin} Hz reach {top:.0f} Hz, above half the rate of {sample_rate} Hz; "
                f"at most {fitting} octaves fit"
            )
        self.hop_length = hop_length
        self.num_octaves = num_octaves
        ratio = 2 ** (1 / bins_per_octave)
        self.quality = 1 / (ratio - 1)
        lowest = fmin * 2 ** (num_octaves - 1)
        octave = [lowest * ratio**index for index in range(bins_per_octave)]
        kernels = _octave_kernels([frequency / sample_rate for frequency in octave], self.quality)
        lengths = [
            math.ceil(self.quality * sample_rate / (fmin * ratio**index))
            for index in range(num_octaves * bins_per_octave)
        ]
        self.register_buffer("kernels", kernels, persistent=False)
        self.register_buffer("halfband", kaiser_sinc_filter(0.25, 0.03, _HALFBAND_TAPS), persistent=False)
        self.register_buffer("scale", torch.tensor(lengths, dtype=torch.float32).sqrt()[:, None], persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        x, hop = audio[:, None], self.hop_length
        octaves = []
        for _ in range(self.num_octaves):
            octaves.append(self._top_octave(x, hop))
            x = F.conv1d(x, self.halfband, stride=2, padding=_HALFBAND_TAPS // 2)
            hop //= 2
        return torch.cat(octaves[::-1], dim=1) * self.scale

    def _top_octave(self, x: Tensor, hop: int) -> Tensor:
        half = self.kernels.shape[-1] // 2
        real, imaginary = F.conv1d(F.pad(x, (half, half)), self.kernels, stride=hop).chunk(2, dim=1)
        return torch.complex(real, imaginary)


def _octave_kernels(frequencies: list[float], quality: float) -> Tensor:
    """Return conjugated complex exponentials under windows: (2 * bins, 1, odd length), real parts first, centred.

    Frequencies are in cycles per sample.
    """
    half = math.ceil(quality / min(frequencies)) // 2 + 1
    time = torch.arange(-half, half + 1, dtype=torch.float64)
    rows = []
    for frequency in frequencies:
        length = math.ceil(quality / frequency)
        window = torch.where(time.abs() < length / 2, torch.cos(math.pi * time / length).square(), 0.0)
        window = window / window.sum()
        phase = 2 * math.pi * frequency * time
        rows.append(torch.stack([window * phase.cos(), -window * phase.sin()]))
    return torch.stack(rows, dim=1).flatten(0, 1)[:, None].float()


Positive = Annotated[int, Field(ge=1)]

_KERNEL = (3, 9)
_SQUARE = (3, 3)
_SLOPE = 0.1


class SubBandCQTDiscriminator(nn.Module):
    """Convolutions over a constant-Q spectrum; the first sees each octave separately, as their phases do not align."""

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        out_channels: int,
        widths: Sequence[int],
        dilations: Sequence[int],
        hop_length: int,
        num_octaves: int,
        bins_per_octave: int,
        fmin: float,
        normalize_volume: bool,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.bins_per_octave = bins_per_octave
        self.normalize_volume = normalize_volume
        # At twice the rate the top octaves are well below half of it.
        self.cqt_transform = ConstantQTransform(2 * sample_rate, hop_length, fmin, num_octaves, bins_per_octave)
        planes = 2 * channels
        self.conv_pres = nn.ModuleList(
            nn.Conv2d(planes, planes, _KERNEL, padding=half_kernel(_KERNEL)) for _ in range(num_octaves)
        )
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(planes, widths[0], _KERNEL, padding=half_kernel(_KERNEL)),
                *(
                    WNConv2d(
                        before,
                        after,
                        _KERNEL,
                        stride=(1, 2),
                        dilation=(dilation, 1),
                        padding=half_kernel(_KERNEL, dilation),
                    )
                    for before, after, dilation in zip(widths, widths[1:], dilations)
                ),
                WNConv2d(widths[-2], widths[-1], _SQUARE, padding=half_kernel(_SQUARE)),
            ]
        )
        self.conv_post = WNConv2d(widths[-1], out_channels, _SQUARE, padding=half_kernel(_SQUARE))
        self.activation = nn.LeakyReLU(_SLOPE)

    def forward(self, audio: Tensor) -> Opinion:
        z = self._spectrum(audio)
        octaves = z.split(self.bins_per_octave, dim=-1)
        z = torch.cat([conv(octave) for conv, octave in zip(self.conv_pres, octaves)], dim=-1)
        features = []
        for conv in self.convs:
            z = self.activation(conv(z))
            features.append(z)
        return Opinion(self.conv_post(z), features)

    def _spectrum(self, audio: Tensor) -> Tensor:
        """(b, c, n) -> (b, 2 * c, frames, bins), real parts first"""
        if self.normalize_volume:
            audio = audio - audio.mean(dim=-1, keepdim=True)
            audio = 0.8 * audio / (audio.abs().amax(dim=-1, keepdim=True) + 1e-9)
        doubled = resample(audio, self.sample_rate, 2 * self.sample_rate)
        spectrum = torch.view_as_real(self.cqt_transform(doubled.flatten(0, 1)))
        return rearrange(spectrum, "(b c) f t part -> b (part c) t f", b=len(audio))


class MultiScaleSubbandCQTDiscriminator(AudioCritic):
    """Sub-band discriminators of several resolutions."""

    def __init__(
        self, adversarial: str, discriminators: Sequence[SubBandCQTDiscriminator], checkpointing: bool
    ) -> None:
        super().__init__(adversarial)
        self.checkpointing = checkpointing
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, audio: Tensor) -> list[Opinion]:
        return [
            run_layer(discriminator, audio, self.checkpointing)  # type: ignore[misc]
            for discriminator in self.discriminators
        ]

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the mean distance of all activations, each relative to the size of the real one."""
        relative = [
            value / feature.abs().mean()
            for r, f in zip(real, fake)
            for value, feature in zip(distances(r, f), r.features)
        ]
        return torch.stack(relative).mean()


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    lists = ("cqtd_hop_lengths", "cqtd_n_octaves", "cqtd_bins_per_octaves")
    counts = {key: len(getattr(config, key)) for key in lists}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{key} {count}" for key, count in counts.items())
        yield lists[0], f"the lists of resolutions must have one length, got {lengths}"
    for index, (hop, octaves) in enumerate(zip(config.cqtd_hop_lengths, config.cqtd_n_octaves)):
        step = 2 ** (octaves - 1)
        if hop % step:
            yield (
                f"cqtd_hop_lengths[{index}]",
                f"is {hop}; it is halved for each of cqtd_n_octaves = {octaves}: use a multiple of {step}",
            )
    if config.fmin is not None and config.cqtd_fmin is not None and config.fmin != config.cqtd_fmin:
        yield "fmin", f"is {config.fmin} and cqtd_fmin {config.cqtd_fmin}: both name one setting; give one of them"


@register("discriminator", "big_vgan", ignored=("cqtd_in_channels", "sampling_rate"), check=_check)
class BigVGANDiscriminator(AudioCritic):
    """Folded waveforms, and sub-bands of constant-Q spectra."""

    def __init__(
        self,
        sample_rate: Runtime[int],
        channels: Runtime[int] = 1,
        use_hinge: Annotated[bool, Field(description="hinge loss for the folds, not least squares")] = False,
        periods: Annotated[Sequence[Positive], Field(description="periods of the folds, in samples")] = PERIODS,
        *,
        loss_type: Annotated[AdversarialName | None, Field(description="null: least squares, or use_hinge")] = None,
        cqtd_filters: Annotated[int, Field(ge=1, description="channels of the first convolution")] = 32,
        cqtd_max_filters: Annotated[int, Field(ge=1, description="most channels of a convolution")] = 1024,
        cqtd_filters_scale: Annotated[int, Field(ge=1, description="growth of the channels per convolution")] = 1,
        cqtd_dilations: Annotated[Sequence[Positive], Field(description="dilation in time of each")] = (1, 2, 4),
        cqtd_out_channels: Annotated[int, Field(ge=1, description="scores per position")] = 1,
        cqtd_hop_lengths: Annotated[
            Sequence[Positive], Field(description="hop of each resolution, at twice the sample rate")
        ] = (512, 256, 256),
        cqtd_n_octaves: Annotated[Sequence[Positive], Field(description="octaves of each resolution")] = (9, 9, 9),
        cqtd_bins_per_octaves: Annotated[Sequence[Positive], Field(description="bins per octave of each")] = (
            24,
            36,
            48,
        ),
        cqtd_fmin: Annotated[float | None, Field(gt=0, description="lowest frequency, Hz; null: 32.7")] = None,
        fmin: Annotated[float | None, Field(gt=0, description="another name of cqtd_fmin")] = None,
        cqtd_normalize_volume: Annotated[bool, Field(description="remove offset, set the peak to 0.8")] = False,
        checkpointing: Annotated[bool, Field(description="recompute activations in the backward pass")] = True,
    ) -> None:
        super().__init__(loss_type or "lsgan")
        self.mpd = DACGANLoss(
            use_hinge,
            loss_type=loss_type,
            channels=channels,
            sample_rate=sample_rate,
            periods=periods,
            fft_sizes=(),
            checkpointing=checkpointing,
        )
        self.cqt = MultiScaleSubbandCQTDiscriminator(
            self.loss_type,
            [
                SubBandCQTDiscriminator(
                    sample_rate=sample_rate,
                    channels=channels,
                    out_channels=cqtd_out_channels,
                    widths=growing_widths(cqtd_filters, cqtd_filters_scale, cqtd_max_filters, len(cqtd_dilations) + 2),
                    dilations=cqtd_dilations,
                    hop_length=hop_length,
                    num_octaves=num_octaves,
                    bins_per_octave=bins_per_octave,
                    fmin=cqtd_fmin or fmin or 32.7,
                    normalize_volume=cqtd_normalize_volume,
                )
                for hop_length, num_octaves, bins_per_octave in zip(
                    cqtd_hop_lengths, cqtd_n_octaves, cqtd_bins_per_octaves
                )
            ],
            checkpointing,
        )

    def forward(self, audio: Tensor) -> list[Opinion]:
        return [*self.mpd(audio), *self.cqt(audio)]

    def _criticise(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        count = len(self.mpd.discriminator.discriminators)
        folds = self.mpd._criticise(real[:count], fake[:count])
        return folds + self.cqt._criticise(real[count:], fake[count:])

    def _persuade(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> GeneratorLosses:
        count = len(self.mpd.discriminator.discriminators)
        folds = self.mpd._persuade(real[:count], fake[:count])
        bands = self.cqt._persuade(real[count:], fake[count:])
        return GeneratorLosses(folds.adversarial + bands.adversarial, folds.feature_matching + bands.feature_matching)

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the sum of the distances of both families."""
        return self._persuade(real, fake).feature_matching
