"""The discriminators of the Descript Audio Codec (Kumar et al. 2023): periods, rates, and bands of spectrograms."""

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
from stable_audio_tools.models.autoencoders.layers import run_layer
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, WNConv2d
from stable_audio_tools.models.discriminators.losses import (
    AdversarialName,
    AudioCritic,
    Opinion,
    distances,
    mean,
)

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Band = Annotated[Sequence[Share], Field(min_length=2, max_length=2)]

BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
PERIODS = (2, 3, 5, 7, 11)


def _activated(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.LeakyReLU(0.1))


class PeriodDiscriminator(nn.Module):
    """The waveform folded at one period."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = (channels, 32, 128, 512, 1024, 1024)
        strides = (3, 3, 3, 3, 1)
        self.convs = nn.ModuleList(
            _activated(WNConv2d(before, after, (5, 1), (stride, 1), padding=(2, 0)))
            for before, after, stride in zip(widths, widths[1:], strides)
        )
        self.conv_post = WNConv2d(1024, 1, (3, 1), padding=(1, 0))

    def forward(self, audio: Tensor) -> Opinion:
        # A whole period is added even if none is missing, as in the published implementation.
        x = F.pad(audio, (0, self.period - audio.shape[-1] % self.period), mode="reflect")
        x = rearrange(x, "b c (n p) -> b c n p", p=self.period)
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        return Opinion(self.conv_post(x), features)


class RateDiscriminator(nn.Module):
    """The waveform at `sample_rate // rate`."""

    def __init__(self, rate: int, sample_rate: int, channels: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.rate = rate
        widths = (16, 64, 256, 1024, 1024)
        self.convs = nn.ModuleList(
            [
                _activated(WNConv1d(channels, 16, 15, padding=7)),
                *(
                    _activated(WNConv1d(before, after, 41, stride=4, groups=groups, padding=20))
                    for before, after, groups in zip(widths, widths[1:], (4, 16, 64, 256))
                ),
                _activated(WNConv1d(1024, 1024, 5, padding=2)),
            ]
        )
        self.conv_post = WNConv1d(1024, 1, 3, padding=1)

    def forward(self, audio: Tensor) -> Opinion:
        # The width and roll-off of julius, which the original resamples with.
        x = resample(audio, self.sample_rate, self.sample_rate // self.rate, lowpass_filter_width=24, rolloff=0.945)
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        return Opinion(self.conv_post(x), features)


class _Band(nn.ModuleList):
    """The convolutions of one band; every output is a feature."""

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for conv in self:
            x = conv(x)
            features.append(x)
        return features


class ResolutionDiscriminator(nn.Module):
    """Bands of the complex spectrogram of one window length, each with its own convolutions."""

    window: Tensor

    def __init__(self, window_length: int, bands: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.hop = window_length // 4
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)
        bins = window_length // 2 + 1
        self.bands = [slice(int(low * bins), int(high * bins)) for low, high in bands]
        self.band_convs = nn.ModuleList(_Band(self._stack()) for _ in bands)
        self.conv_post = WNConv2d(32, 1, (3, 3), padding=(1, 1))

    @staticmethod
    def _stack() -> Iterator[nn.Module]:
        yield _activated(WNConv2d(2, 32, (3, 9), padding=(1, 4)))
        for _ in range(3):
            yield _activated(WNConv2d(32, 32, (3, 9), (1, 2), padding=(1, 4)))
        yield _activated(WNConv2d(32, 32, (3, 3), padding=(1, 1)))

    def _spectrogram(self, audio: Tensor) -> Tensor:
        """Compute one frame per hop, aligned with strided convolutions: (b, c, n) -> (b * c, 2, frames, bins)."""
        window = len(self.window)
        lacking = -audio.shape[-1] % self.hop
        margin = (window - self.hop) // 2
        waves = F.pad(audio, (margin, margin + lacking), mode="reflect").flatten(0, 1)
        spectrum = torch.stft(waves, window, self.hop, window=self.window, center=True, return_complex=True)
        # Two frames at each end see more padding than audio.
        return rearrange(torch.view_as_real(spectrum[..., 2:-2]), "b f t part -> b part t f")

    def forward(self, audio: Tensor) -> Opinion:
        spectrogram = self._spectrogram(audio)
        features: list[Tensor] = []
        outputs: list[Tensor] = []
        for band, convs in zip(self.bands, self.band_convs):
            activations = convs(spectrogram[..., band])
            features += activations
            outputs.append(activations[-1])
        return Opinion(self.conv_post(torch.cat(outputs, dim=-1)), features)


class DACDiscriminator(nn.Module):
    """All sub-discriminators, on audio without offset and with a peak of 0.8."""

    def __init__(self, discriminators: Sequence[nn.Module], checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, audio: Tensor) -> list[Opinion]:
        audio = audio - audio.mean(dim=-1, keepdim=True)
        audio = 0.8 * audio / (audio.abs().amax(dim=-1, keepdim=True) + 1e-9)
        return [self._ask(discriminator, audio) for discriminator in self.discriminators]

    def _ask(self, discriminator: nn.Module, audio: Tensor) -> Opinion:
        opinion: Opinion = run_layer(discriminator, audio, self.checkpointing)  # type: ignore[assignment]
        return opinion


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    for index, size in enumerate(config.fft_sizes):
        if size % 4:
            yield f"fft_sizes[{index}]", f"is {size}; a hop is a quarter of it: use {math.ceil(size / 4) * 4}"
    for index, (low, high) in enumerate(config.bands):
        if low >= high:
            yield f"bands[{index}]", f"runs from {low} to {high}: the first must be below the second"
    if not (config.rates or config.periods or config.fft_sizes):
        yield "periods", "rates, periods and fft_sizes are all empty; give at least one entry"


@register("discriminator", "dac", check=_check)
class DACGANLoss(AudioCritic):
    """Folded waveforms, resampled waveforms and bands of complex spectrograms."""

    def __init__(
        self,
        use_hinge: Annotated[bool, Field(description="hinge loss with margins at 1 and 0, not least squares")] = False,
        *,
        loss_type: Annotated[AdversarialName | None, Field(description="null: as use_hinge says")] = None,
        channels: Runtime[int] = 1,
        sample_rate: Runtime[int] = 44100,
        rates: Annotated[Sequence[Positive], Field(description="divisors of the sample rate")] = (),
        periods: Annotated[Sequence[Positive], Field(description="periods of the folds, in samples")] = PERIODS,
        fft_sizes: Annotated[Sequence[Positive], Field(description="window lengths of the spectrograms")] = (
            2048,
            1024,
            512,
        ),
        bands: Annotated[Sequence[Band], Field(description="bands as shares of the bins")] = BANDS,
        checkpointing: Annotated[bool, Field(description="recompute activations in the backward pass")] = True,
    ) -> None:
        super().__init__(loss_type or ("unit_hinge" if use_hinge else "lsgan"))
        self.discriminator = DACDiscriminator(
            [
                *(PeriodDiscriminator(period, channels) for period in periods),
                *(RateDiscriminator(rate, sample_rate, channels) for rate in rates),
                *(ResolutionDiscriminator(size, bands) for size in fft_sizes),
            ],
            checkpointing,
        )

    def forward(self, audio: Tensor) -> list[Opinion]:
        opinions: list[Opinion] = self.discriminator(audio)
        return opinions

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the mean distance over activations and discriminators; scores are not among the activations."""
        return mean(mean(distances(r, f)) for r, f in zip(real, fake))
