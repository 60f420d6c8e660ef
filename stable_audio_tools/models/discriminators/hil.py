"""Discriminators over complex spectrograms and over the bands of filter banks (HILCodec, Ahn et al. 2024)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchaudio.transforms import Spectrogram

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.discriminators.encodec import EncodecDiscriminator
from stable_audio_tools.models.discriminators.losses import (
    AdversarialName,
    AudioCritic,
    Opinion,
    distances,
    mean,
    relative_distances,
)
from stable_audio_tools.models.psychoacoustics import PsychoacousticStereoNoise
from stable_audio_tools.models.transforms import CosineModulatedFilterBank, chroma_bands

Positive = Annotated[int, Field(ge=1)]
Norm = Literal["weight_norm", "spectral_norm"]
Published = tuple[list[Tensor], list[list[Tensor]]]  # scores and activations of every sub-discriminator

_NORMS: dict[Norm, Callable[[nn.Conv2d], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}
_CHROMA_WINDOW = 4096


class ChromaSpectrum(nn.Module):
    """Energy in pitch classes, (b, c, n) -> (b, c, classes, frames)."""

    def __init__(
        self, classes: int, sample_rate: int, centre_octave: float = 5.0, octave_width: float = 2.0, norm: float = 2.0
    ) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(_CHROMA_WINDOW, hop_length=_CHROMA_WINDOW // 2, normalized=True)
        self.hop = _CHROMA_WINDOW // 2
        bands = chroma_bands(sample_rate, _CHROMA_WINDOW, classes, centre_octave, octave_width, norm)
        self.register_buffer("bands", bands, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        out: Tensor = self.get_buffer("bands") @ self.spectrogram(audio)
        return out


class BandDiscriminator(nn.Module):
    """Convolutions along time over bands, (b, c, bands, frames), the bands apart."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel_sizes: Sequence[int],
        norm: Norm,
    ) -> None:
        super().__init__()
        normed = _NORMS[norm]
        widths = [in_channels, *channels]
        self.convs = nn.ModuleList(
            normed(nn.Conv2d(before, after, (1, size), (1, stride), padding=(0, (size - 1) // 2)))
            for before, after, stride, size in zip(widths, channels, strides, kernel_sizes)
        )
        self.conv_post = normed(nn.Conv2d(widths[-1], 1, (1, 3), padding=(0, 1)))

    def forward(self, audio: Tensor) -> Opinion:
        z = self.split(audio)
        features = []
        for conv in self.convs:
            z = F.leaky_relu(conv(z), 0.1)
            features.append(z)
        z = self.conv_post(z)
        return Opinion(z.flatten(1), [*features, z])

    def split(self, audio: Tensor) -> Tensor:
        """(b, c, n) -> (b, c, bands, frames)"""
        raise NotImplementedError


class FilterBankDiscriminator(BandDiscriminator):
    """The waveform in `period` bands of a filter bank, or as it is if there is one."""

    def __init__(self, period: int, taps: int, beta: float, cutoff_freq: float, in_channels: int, **options: object):
        super().__init__(in_channels, **options)  # type: ignore[arg-type]
        self.pqmf = nn.Identity() if period == 1 else CosineModulatedFilterBank(period, taps, cutoff_freq, beta)

    def split(self, audio: Tensor) -> Tensor:
        bands: Tensor = self.pqmf(audio.flatten(0, 1)[:, None])
        return bands.unflatten(0, audio.shape[:2])


class ChromaDiscriminator(BandDiscriminator):
    """Pitch classes, each by itself."""

    def __init__(self, n_chroma: int, sample_rate: int, in_channels: int, **options: object) -> None:
        super().__init__(in_channels, **options)  # type: ignore[arg-type]
        self.chroma = ChromaSpectrum(n_chroma, sample_rate)

    def split(self, audio: Tensor) -> Tensor:
        bands: Tensor = self.chroma(audio)
        return bands


class MultiFilterBankDiscriminator(nn.Module):
    """One discriminator for each filter bank."""

    def __init__(
        self, periods: Sequence[int], cutoff_freqs: Sequence[float], taps: int, beta: float, **options: object
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            FilterBankDiscriminator(period, taps, beta, cutoff, **options)  # type: ignore[arg-type]
            for period, cutoff in zip(periods, cutoff_freqs)
        )

    def forward(self, audio: Tensor) -> list[Opinion]:
        return [discriminator(audio) for discriminator in self.discriminators]


class NoisyCritic(AudioCritic):
    """A critic of several discriminators, whose audio may get noise below the threshold of hearing.

    `forward` returns the published pair of lists, scores and activations; `judge` returns opinions.
    """

    def __init__(
        self, loss_type: str, normalize_losses: bool, noise: PsychoacousticStereoNoise | None, add_noise: bool
    ) -> None:
        super().__init__(loss_type)
        self.normalize_losses, self.add_noise = normalize_losses, add_noise
        self.noise_model = noise

    def forward(self, audio: Tensor) -> Published:  # type: ignore[override]
        opinions = self.judge(audio)
        return [opinion.score for opinion in opinions], [opinion.features for opinion in opinions]

    def judge(self, audio: Tensor) -> list[Opinion]:
        if self.noise_model is not None and self.add_noise:
            audio = audio + self.noise_model(audio)[:, : audio.shape[1]]
        return self.ask(audio)

    def ask(self, audio: Tensor) -> list[Opinion]:
        """Return the opinion of every sub-discriminator on audio to which noise was added."""
        raise NotImplementedError

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Mean over activations and discriminators; with `normalize_losses` relative to the size of the real ones."""
        apart = relative_distances if self.normalize_losses else distances
        return torch.nan_to_num(mean(mean(apart(r, f)) for r, f in zip(real, fake)), nan=0.0, posinf=0.0)


def check_filter_banks(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """As many strides and kernels as widths, as many cutoffs as periods; banks need an even number of taps."""
    for keys in (("strides", "channels"), ("kernel_sizes", "channels"), ("cutoff_freqs", "periods")):
        counts = [len(getattr(config, key)) for key in keys]
        if counts[0] != counts[1]:
            yield keys[0], f"has {counts[0]} entries for {counts[1]} {keys[1]}; give one each"
    if config.taps % 2:
        yield "taps", f"is {config.taps}, and must be even; use {config.taps + 1}"
    for index, (period, cutoff) in enumerate(zip(config.periods, config.cutoff_freqs)):
        if period > 1 and not 0 < cutoff < 1:
            yield (
                f"cutoff_freqs[{index}]",
                f"is {cutoff}; a filter bank of {period} bands needs a cutoff between 0 and 1",
            )


_Filters = Annotated[int, Field(ge=1, description="channels of the first convolution over spectrograms")]
_Sizes = Annotated[Sequence[Positive], Field(min_length=1)]


@register("discriminator", "hil", check=check_filter_banks)
class HILDiscriminator(NoisyCritic):
    """Discriminators over complex spectrograms of several resolutions and over filter banks of several periods."""

    def __init__(
        self,
        normalize_losses: Annotated[bool, Field(description="relative feature distances")] = False,
        loss_type: Annotated[AdversarialName, Field(description="adversarial loss")] = "rpgan",
        add_noise: Annotated[
            bool, Field(description="add noise below the masking threshold to what is judged")
        ] = False,
        sample_rate: Runtime[int] = 44100,
        n_chroma: Annotated[int, Field(ge=0, description="pitch classes of one more discriminator; 0: none")] = 0,
        *,
        filters: _Filters,
        in_channels: Runtime[int] = 1,
        out_channels: Annotated[int, Field(ge=1, description="scores per position of spectrograms")] = 1,
        n_ffts: Annotated[_Sizes, Field(description="transform size of each spectrogram")] = (1024, 2048, 512),
        hop_lengths: Annotated[_Sizes, Field(description="hop of each spectrogram")] = (256, 512, 128),
        win_lengths: Annotated[_Sizes, Field(description="window of each spectrogram")] = (1024, 2048, 512),
        max_filters: Annotated[int, Field(ge=1, description="most channels of a convolution over spectrograms")] = 1024,
        filters_scale: Annotated[int, Field(ge=1, description="growth of these channels per convolution")] = 1,
        kernel_size: Annotated[Sequence[Positive], Field(min_length=2, max_length=2, description="frames, bins")] = (
            3,
            9,
        ),
        dilations: Annotated[Sequence[Positive], Field(description="dilation in time of each of these")] = (1, 2, 4),
        stride: Annotated[Sequence[Positive], Field(min_length=2, max_length=2, description="frames, bins")] = (1, 1),
        normalized: Annotated[bool, Field(description="divide spectra by the norm of the window")] = True,
        activation: Annotated[str, Field(description="a class of torch.nn, for spectrograms")] = "LeakyReLU",
        activation_params: Annotated[
            Mapping[str, float | bool] | None, Field(description="its arguments; null: a slope of 0.2 for LeakyReLU")
        ] = None,
        spec_scale_pow: Annotated[float, Field(description="multiply spectra by this power of their magnitude")] = 0.0,
        periods: Annotated[_Sizes, Field(description="bands of each filter bank; 1: the waveform")] = (
            1,
            2,
            3,
            5,
            7,
            11,
        ),
        taps: Annotated[int, Field(ge=2, description="length of the prototype filters minus one")] = 256,
        beta: Annotated[float, Field(gt=0, description="of their Kaiser window")] = 8.0,
        cutoff_freqs: Annotated[
            Sequence[Annotated[float, Field(ge=0)]],
            Field(description="cutoff of each, a share of half the sample rate"),
        ] = (0, 0.253881, 0.170546, 0.103881, 0.075310, 0.049338),
        kernel_sizes: Annotated[_Sizes, Field(description="kernel of each convolution over bands")] = (5, 5, 5, 5, 5),
        strides: Annotated[_Sizes, Field(description="stride of each")] = (3, 3, 3, 3, 1),
        channels: Annotated[_Sizes, Field(description="width of each")] = (32, 128, 512, 1024, 1024),
        norm: Annotated[Norm, Field(description="normalisation of the convolutions over bands")] = "weight_norm",
        checkpointing: Annotated[bool, Field(description="recompute activations over spectrograms backwards")] = True,
    ) -> None:
        super().__init__(loss_type, normalize_losses, None, add_noise)
        self.stft_discriminators = EncodecDiscriminator(
            filters=filters,
            in_channels=in_channels,
            out_channels=out_channels,
            n_ffts=n_ffts,
            hop_lengths=hop_lengths,
            win_lengths=win_lengths,
            max_filters=max_filters,
            filters_scale=filters_scale,
            kernel_size=kernel_size,
            dilations=dilations,
            stride=stride,
            normalized=normalized,
            activation=activation,
            activation_params=activation_params,
            spec_scale_pow=spec_scale_pow,
            checkpointing=checkpointing,
        ).discriminators
        stack = {"channels": channels, "strides": strides, "kernel_sizes": kernel_sizes, "norm": norm}
        self.fb_discriminators = MultiFilterBankDiscriminator(
            periods, cutoff_freqs, taps, beta, in_channels=in_channels, **stack
        )
        self.chroma_discriminator = (
            ChromaDiscriminator(n_chroma, sample_rate, in_channels, **stack) if n_chroma else None
        )
        self.noise_model = PsychoacousticStereoNoise(sample_rate) if add_noise else None

    def ask(self, audio: Tensor) -> list[Opinion]:
        opinions = [*self.stft_discriminators(audio), *self.fb_discriminators(audio)]
        if self.chroma_discriminator is not None:
            opinions.append(self.chroma_discriminator(audio))
        return opinions
