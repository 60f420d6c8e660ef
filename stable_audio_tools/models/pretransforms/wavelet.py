"""Biorthogonal wavelets (Cohen, Daubechies & Feauveau 1992): each level halves the rate and splits off details.

    audio, level 1    [low 1 | high 1]
    level 2           [low 2 | high 2 | high 1, its even and odd frames side by side]

All filters are symmetric and of odd length, so reflection at the ends is lossless.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.pretransforms.base import Pretransform, facts

Wavelet = Literal["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"]

_LINEAR = (math.sqrt(1 / 2), math.sqrt(1 / 8))  # the hat function that all bior2.* are built on

# Low-pass filters of analysis and synthesis, from the middle outwards; each sums to the square root of two.
_LOW_PASSES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "bior2.2": ([math.sqrt(2) * c / 8 for c in (6, 2, -1)], _LINEAR),
    "bior2.4": ([math.sqrt(2) * c / 128 for c in (90, 38, -16, -6, 3)], _LINEAR),
    "bior2.6": ([math.sqrt(2) * c / 1024 for c in (700, 324, -123, -78, 34, 10, -5)], _LINEAR),
    "bior2.8": ([math.sqrt(2) * c / 32768 for c in (22050, 10718, -3796, -3126, 1228, 670, -300, -70, 35)], _LINEAR),
    "bior4.4": (
        (
            *(0.8526986790088938, 0.37740285561283066, -0.11062440441843718, -0.023849465019556843),
            0.03782845550726404,
        ),
        (0.7884856164055829, 0.41809227322161724, -0.04068941760916406, -0.06453888262869706),
    ),
    "bior6.8": (
        (
            *(0.8259229974584023, 0.4207962846098268, -0.09405920349573646, -0.07726317316720414),
            *(0.04973290349094079, 0.01193456527972926, -0.016990639867602342, -0.0019142861290887667),
            0.0019088317364812906,
        ),
        (
            *(0.7589077294536541, 0.41784910915027457, -0.04036797903033992, -0.07872200106262882),
            *(0.014467504896790148, 0.014426282505624435),
        ),
    ),
}


def _to_high_pass(low: Tensor) -> Tensor:
    """Modulate a symmetric low-pass to the top of the spectrum: signs alternate, the middle one is negative."""
    distance = torch.arange(len(low)) - len(low) // 2
    return torch.where(distance % 2 == 0, -low, low)


def _centred(taps: Tensor, length: int, middle: int) -> Tensor:
    """Pad `taps` with zeros to `length`, with their centre at `middle`."""
    left = middle - len(taps) // 2
    return F.pad(taps, (left, length - left - len(taps)))


def filters(wavelet: str) -> tuple[Tensor, Tensor]:
    """Return correlation kernels of analysis and convolution kernels of synthesis, each (2, taps): low-pass, high-pass.

    In both, the high-pass is one sample after the low-pass, at the odd samples.
    """
    halves = (torch.tensor(half, dtype=torch.float64) for half in _LOW_PASSES[wavelet])  # the middle included
    analysis, synthesis = (torch.cat([right[1:].flip(0), right]) for right in halves)
    length = len(analysis)
    middle = length // 2
    analyse = [analysis, _centred(_to_high_pass(synthesis), length, middle + 1)]
    synthesise = [_centred(synthesis, length, middle - 1), _to_high_pass(analysis)]
    return torch.stack(analyse).float(), torch.stack(synthesise).float()


def _for_channels(kernel: Tensor, channels: int) -> Tensor:
    """Repeat a pair of filters for every channel: (2 * channels, channels, taps), all low-passes first."""
    same = torch.eye(channels)
    return (kernel[:, None, None] * same[None, :, :, None]).flatten(0, 1)


class WaveletEncode1d(nn.Module):
    """(b, c, n) -> (b, c * 2^levels, n / 2^levels)"""

    kernel: Tensor

    def __init__(self, channels: int, levels: int, wavelet: str) -> None:
        super().__init__()
        self.channels = channels
        self.levels = levels
        self.register_buffer("kernel", _for_channels(filters(wavelet)[0], channels))

    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel.shape[-1] // 2
        for _ in range(self.levels):
            low, rest = x[:, : self.channels], x[:, self.channels :]
            split = F.conv1d(F.pad(low, (pad, pad), "reflect"), self.kernel.to(x.dtype), stride=2)
            rest = rest.unflatten(1, (-1, self.channels)).unflatten(-1, (-1, 2))  # (b, d, c, t, 2)
            x = torch.cat([split, rest.permute(0, 1, 4, 2, 3).flatten(1, 3)], dim=1)
        return x


class WaveletDecode1d(nn.Module):
    """(b, c * 2^levels, t) -> (b, c, t * 2^levels)"""

    kernel: Tensor

    def __init__(self, channels: int, levels: int, wavelet: str) -> None:
        super().__init__()
        self.channels = channels
        self.levels = levels
        self.register_buffer("kernel", _for_channels(filters(wavelet)[1], channels))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.levels):
            split, rest = x[:, : 2 * self.channels], x[:, 2 * self.channels :]
            rest = rest.unflatten(1, (-1, 2, self.channels)).permute(0, 1, 3, 4, 2)  # (b, d, c, t, 2)
            x = torch.cat([self._join(split), rest.flatten(3).flatten(1, 2)], dim=1)
        return x

    def _join(self, split: Tensor) -> Tensor:
        """Join low and high frames (b, 2c, t), interleaved for reflection, to (b, c, 2t)."""
        taps = self.kernel.shape[-1]
        pad = taps // 2 + 2
        woven = split.unflatten(1, (2, -1)).permute(0, 2, 3, 1).flatten(2)  # low, high, low, high, ...
        woven = F.pad(woven, (pad, pad), "reflect")
        split = woven.unflatten(-1, (-1, 2)).permute(0, 3, 1, 2).flatten(1, 2)
        joined = F.conv_transpose1d(split, self.kernel.to(split.dtype), stride=2, padding=taps // 2)
        return joined[..., pad - 1 : -pad]


@register(
    "pretransform",
    "wavelet",
    facts=lambda config: facts(
        io_channels=config.channels,
        encoded_channels=config.channels * 2**config.levels,
        downsampling_ratio=2**config.levels,
    ),
)
class WaveletPretransform(Pretransform):
    """A discrete wavelet transform with as many channels as it saves samples."""

    def __init__(
        self,
        channels: Annotated[int, Field(ge=1, description="audio channels")],
        levels: Annotated[int, Field(ge=1, le=20, description="how often the rate is halved")],
        wavelet: Wavelet,
    ) -> None:
        super().__init__(enable_grad=False, io_channels=channels, is_discrete=False)
        self.encoder = WaveletEncode1d(channels, levels, wavelet)
        self.decoder = WaveletDecode1d(channels, levels, wavelet)
        self.downsampling_ratio = 2**levels
        self.encoded_channels = channels * self.downsampling_ratio

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:  # (b, c, n) -> (b, d, t)
        length, ratio = x.shape[-1], self.downsampling_ratio
        shortest = ratio * math.ceil((self.encoder.kernel.shape[-1] // 2 + 3) / 2)  # reflection on decode needs these
        if length % ratio or length < shortest:
            fitting = max(math.ceil(length / ratio) * ratio, shortest)
            raise ValueError(
                f"audio of {length} samples: this wavelet transform takes multiples of {ratio}, at least {shortest}; "
                f"pad it to {fitting}"
            )
        return self.encoder(x)

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:  # (b, d, t) -> (b, c, n)
        return self.decoder(z)
