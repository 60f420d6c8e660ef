"""Pseudo-quadrature mirror filters: critically sampled subbands, nearly perfectly invertible.

A Kaiser-windowed low-pass is modulated to the middle of each band by a cosine; its cutoff is searched so that the
bands' powers add up evenly (Lin & Vaidyanathan 1998). Filtering runs on the polyphase components, at the rate of the
bands.
"""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.pretransforms.base import Pretransform, facts

_Array = NDArray[np.float64]


def design_lowpass(cutoff: float, attenuation: float) -> _Array:
    """Design a low-pass of odd length; `cutoff` (radians per sample) equals the transition width, attenuation in dB."""
    from scipy.signal import firwin, kaiserord

    length, beta = kaiserord(attenuation, cutoff / np.pi)
    taps: _Array = firwin(length // 2 * 2 + 1, cutoff / np.pi, window=("kaiser", beta), scale=False)
    return taps


@cache
def design_prototype(attenuation: float, num_bands: int) -> _Array:
    """Design the low-pass whose autocorrelation is nearest to zero at multiples of two band widths."""
    from scipy.optimize import fmin

    def unevenness(cutoff: _Array) -> float:
        taps = design_lowpass(float(cutoff[0]), attenuation)
        autocorrelation = np.convolve(taps, taps[::-1])
        return float(np.abs(autocorrelation[len(taps) - 1 :: 2 * num_bands][1:]).max())

    best = fmin(unevenness, np.array([1 / num_bands]), disp=False)
    return design_lowpass(float(best[0]), attenuation)


def modulate(prototype: _Array, num_bands: int) -> _Array:
    """Return one filter per band, (bands, taps), zero-padded to a power of two."""
    band = np.arange(num_bands)[:, None]
    time = np.arange(len(prototype)) - len(prototype) // 2
    phase = np.where(band % 2 == 0, np.pi / 4, -np.pi / 4)
    filters = 2 * prototype * np.cos((2 * band + 1) * np.pi / (2 * num_bands) * time + phase)
    missing = (1 << (len(prototype) - 1).bit_length()) - len(prototype)
    return np.pad(filters, ((0, 0), (missing // 2, missing - missing // 2)))


class PQMF(nn.Module):
    """Analysis (b, c, n) -> (b, c, bands, n / bands) and synthesis."""

    filter_bank: Tensor
    prototype: Tensor

    def __init__(self, attenuation: float, num_bands: int) -> None:
        super().__init__()
        self.num_bands = num_bands
        prototype = design_prototype(attenuation, num_bands)
        self.register_buffer("filter_bank", torch.tensor(modulate(prototype, num_bands), dtype=torch.float32))
        self.register_buffer("prototype", torch.tensor(prototype, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Split x into bands; its end is padded with silence to a whole number of frames."""
        x = F.pad(x, (0, -x.shape[-1] % self.num_bands))
        phases = x.unflatten(-1, (-1, self.num_bands)).mT.flatten(0, 1)  # (b c, phase, t)
        filters = self._phases_of_filters(self.filter_bank, x)  # (band, phase, taps)
        bands = F.conv1d(phases, filters, padding=filters.shape[-1] // 2)[..., :-1]
        return self._turn_signs(bands.unflatten(0, x.shape[:2]))

    def inverse(self, bands: Tensor) -> Tensor:
        """Join the bands: (b, c, bands, t) -> (b, c, t * bands)."""
        signal = self._turn_signs(bands).flatten(0, 1)
        filters = self._phases_of_filters(self.filter_bank.flip(-1), bands).transpose(0, 1)  # (phase, band, taps)
        padding = filters.shape[-1] // 2 + 1
        phases = F.conv1d(signal, filters, padding=padding)[..., :-1] * self.num_bands
        x = phases.flip(1).mT.flatten(1).unflatten(0, bands.shape[:2])
        return x[..., 2 * self.num_bands :]

    def _phases_of_filters(self, filters: Tensor, like: Tensor) -> Tensor:
        return filters.to(like.dtype).unflatten(-1, (-1, self.num_bands)).mT

    def _turn_signs(self, bands: Tensor) -> Tensor:
        """Negate every other frame of every other band, since the downsampled spectra of odd bands are reversed."""
        turned = bands.clone()
        turned[..., 1::2, ::2] *= -1
        return turned


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.num_bands & (config.num_bands - 1):
        below = 1 << (config.num_bands.bit_length() - 1)
        yield "num_bands", f"is {config.num_bands}, and must be a power of two: use {below} or {2 * below}"


@register(
    "pretransform",
    "pqmf",
    facts=lambda config: facts(
        io_channels=config.channels,
        encoded_channels=config.channels * config.num_bands,
        downsampling_ratio=config.num_bands,
    ),
    check=_check,
)
class PQMFPretransform(Pretransform):
    """Subbands of a pseudo-quadrature mirror filter bank."""

    def __init__(
        self,
        attenuation: Annotated[float, Field(gt=0, description="decibels between a band and the others")] = 100,
        num_bands: Annotated[int, Field(ge=2, description="bands, a power of two")] = 16,
        channels: Annotated[int, Field(ge=1, description="audio channels")] = 1,
    ) -> None:
        super().__init__(enable_grad=False, io_channels=channels, is_discrete=False)
        self.pqmf = PQMF(attenuation, num_bands)
        self.downsampling_ratio = num_bands
        self.encoded_channels = channels * num_bands

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:  # (b, c, n) -> (b, c * bands, t)
        return self.pqmf(x).flatten(1, 2)

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:  # (b, c * bands, t) -> (b, c, n)
        return self.pqmf.inverse(z.unflatten(1, (-1, self.pqmf.num_bands)))
