"""BigVGAN's discriminators: periods of the waveform (Lee et al. 2023), sub-bands of constant-Q spectra (Gu 2024)."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torchaudio.functional import resample

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.autoencoders.layers import run_layer
from stable_audio_tools.models.autoencoders.weight_norm import WNConv2d
from stable_audio_tools.models.discriminators.cqt import ConstantQTransform
from stable_audio_tools.models.discriminators.dac import PERIODS, DACGANLoss
from stable_audio_tools.models.discriminators.encodec import growing_widths, half_kernel
from stable_audio_tools.models.discriminators.losses import (
    AdversarialName,
    AudioCritic,
    GeneratorLosses,
    Opinion,
    distances,
)

Positive = Annotated[int, Field(ge=1)]

_KERNEL = (3, 9)
_SQUARE = (3, 3)
_SLOPE = 0.1


class SubBandCQTDiscriminator(nn.Module):
    """Convolutions over a constant-Q spectrum; the first sees each octave for itself, as their phases do not align."""

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
        # At twice the rate the top octaves lie well below half of it.
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
        """Mean over all activations, each distance relative to the size of the real one."""
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
        told = ", ".join(f"{key} {count}" for key, count in counts.items())
        yield lists[0], f"the lists of resolutions must be of one length, got {told}"
    for index, (hop, octaves) in enumerate(zip(config.cqtd_hop_lengths, config.cqtd_n_octaves)):
        step = 2 ** (octaves - 1)
        if hop % step:
            yield (
                f"cqtd_hop_lengths[{index}]",
                f"is {hop}; it is halved for each of cqtd_n_octaves = {octaves}: use a multiple of {step}",
            )
    if config.fmin is not None and config.cqtd_fmin is not None and config.fmin != config.cqtd_fmin:
        yield "fmin", f"is {config.fmin} and cqtd_fmin {config.cqtd_fmin}: they are one; give one"


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
        """The sum of both families' distances."""
        return self._persuade(real, fake).feature_matching
