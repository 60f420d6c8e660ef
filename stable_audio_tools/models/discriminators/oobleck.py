"""The discriminators of RAVE-like models: several rates and several periods of the waveform (Kong et al. 2020)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, WNConv2d
from stable_audio_tools.models.discriminators.losses import (
    AdversarialName,
    AudioCritic,
    Opinion,
    distances,
)

_WIDTHS = (32, 64, 128, 256)
_KERNEL = 15
_STRIDE = 4
_PERIODS = (2, 3, 5, 7, 11)
_NUM_SCALES = 3


class ConvStack(nn.Module):
    """Four strided convolutions and a score; every convolution's output is a feature.

    In two dimensions kernel and stride are square, along the period too.
    """

    def __init__(self, in_channels: int, dimensions: int) -> None:
        super().__init__()
        normed = WNConv1d if dimensions == 1 else WNConv2d
        plain = nn.Conv1d if dimensions == 1 else nn.Conv2d
        layers: list[nn.Module] = []
        for before, after in zip((in_channels, *_WIDTHS), _WIDTHS):
            layers += [normed(before, after, _KERNEL, stride=_STRIDE, padding=_KERNEL // 2), nn.SiLU()]
        self.net = nn.ModuleList([*layers, plain(_WIDTHS[-1], 1, 1)])

    def forward(self, x: Tensor) -> Opinion:
        """Score x (b, c, n) or (b, c, n / period, period); the score is (b,)."""
        features = []
        for layer in self.net:
            x = layer(x)
            if not isinstance(layer, nn.SiLU):
                features.append(x)
        return Opinion(x.flatten(1).mean(dim=-1), features)


def _joined(opinions: Sequence[Opinion]) -> Opinion:
    score = torch.stack([opinion.score for opinion in opinions]).sum(dim=0)
    return Opinion(score, [feature for opinion in opinions for feature in opinion.features])


class MultiScaleDiscriminator(nn.Module):
    """The waveform at full, half and quarter rate."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvStack(in_channels, 1) for _ in range(_NUM_SCALES))

    def forward(self, x: Tensor) -> Opinion:
        opinions = []
        for layer in self.layers:
            opinions.append(layer(x))
            x = F.avg_pool1d(x, 2)
        return _joined(opinions)


class MultiPeriodDiscriminator(nn.Module):
    """The waveform folded at several periods."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvStack(in_channels, 2) for _ in _PERIODS)

    def forward(self, x: Tensor) -> Opinion:
        return _joined(
            [
                layer(F.pad(x, (0, -x.shape[-1] % period)).unflatten(-1, (-1, period)))  # (b, c, n / period, period)
                for layer, period in zip(self.layers, _PERIODS)
            ]
        )


class MultiDiscriminator(nn.Module):
    """Both kinds, summed into one score."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            [MultiScaleDiscriminator(in_channels), MultiPeriodDiscriminator(in_channels)]
        )

    def forward(self, x: Tensor) -> Opinion:
        return _joined([discriminator(x) for discriminator in self.discriminators])


@register("discriminator", "oobleck")
class OobleckDiscriminator(AudioCritic):
    """Convolutions over the waveform at three rates and folded at five periods, with one common score."""

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1, description="channels of the audio")] = 1,
        *,
        loss_type: Annotated[AdversarialName, Field(description="adversarial loss")] = "hinge",
    ) -> None:
        super().__init__(loss_type)
        self.in_channels = in_channels
        self.multi_discriminator = MultiDiscriminator(in_channels)

    def forward(self, audio: Tensor) -> list[Opinion]:
        if audio.shape[1] != self.in_channels:
            raise ValueError(
                f"the oobleck discriminator has in_channels = {self.in_channels}, the audio {audio.shape[1]} channels; "
                f"set in_channels to {audio.shape[1]}"
            )
        return [self.multi_discriminator(audio)]

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the sum over all activations, each averaged."""
        return torch.stack([value for r, f in zip(real, fake) for value in distances(r, f)]).sum()
