"""Fixed filters of the spectral losses: A-weighting in time, mel and chroma bands in frequency."""

import math
from typing import Literal

import numpy as np
import scipy.signal
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

_A4 = 440.0


def a_weighting_taps(sample_rate: float, num_taps: int) -> list[float]:
    """A linear-phase filter with the magnitude response of A-weighting (IEC 61672), fitted by least squares."""
    poles_hz = (20.598997, 107.65265, 737.86223, 12194.217)
    lowest, low, middle, highest = (2 * math.pi * frequency for frequency in poles_hz)
    gain_at_1_khz = 1.9997  # decibels, so that 1 kHz passes unchanged
    numerator = [highest**2 * 10 ** (gain_at_1_khz / 20), 0, 0, 0, 0]
    denominator = np.poly([-highest, -highest, -lowest, -lowest, -middle, -low])
    digital = scipy.signal.bilinear(numerator, denominator, fs=sample_rate)
    frequencies, response = scipy.signal.freqz(*digital, worN=512, fs=sample_rate)
    taps: list[float] = scipy.signal.firls(num_taps, frequencies, np.abs(response), fs=sample_rate).tolist()
    return taps


class FIRFilter(nn.Module):
    """Pre-emphasis of (b, c, n), the length kept (Wright & Välimäki 2019).

    "aw" A-weighting, "hp" first-order high pass, "fd" folded differentiator.
    """

    def __init__(
        self,
        filter_type: Literal["hp", "fd", "aw"] = "hp",
        coef: float = 0.85,
        fs: float = 44100,
        ntaps: int = 101,
    ) -> None:
        super().__init__()
        if ntaps % 2 == 0:
            raise ValueError(f"ntaps must be odd, got {ntaps}; use {ntaps + 1}")
        designs = {
            "hp": lambda: [1.0, -coef, 0.0],
            "fd": lambda: [1.0, 0.0, -coef],
            "aw": lambda: a_weighting_taps(fs, ntaps),
        }
        if filter_type not in designs:
            raise ValueError(f"no filter named {filter_type!r}; there are {', '.join(designs)}")
        taps = designs[filter_type]()
        self.fir = nn.Conv1d(1, 1, len(taps), padding=len(taps) // 2, bias=False)
        self.fir.weight = nn.Parameter(torch.tensor([[taps]]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        filtered: Tensor = self.fir(x.flatten(0, 1)[:, None])
        return filtered.view_as(x)


def mel_bands(sample_rate: int, fft_size: int, num_bands: int) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, (bands, bins)."""
    bands: Tensor = torchaudio.functional.melscale_fbanks(
        fft_size // 2 + 1, 0.0, sample_rate / 2, num_bands, sample_rate, norm="slaney", mel_scale="slaney"
    )
    return bands.T


def chroma_bands(sample_rate: int, fft_size: int, num_bands: int = 12) -> Tensor:
    """Pitch classes from C on, weighted towards the middle octaves, (bands, bins) (Ellis 2007)."""
    centre_octave, octave_width = 5.0, 2.0
    frequencies = torch.arange(1, fft_size, dtype=torch.float64) * sample_rate / fft_size
    pitch = num_bands * torch.log2(frequencies / (_A4 / 16))  # in classes above A0
    pitch = torch.cat([pitch[:1] - 1.5 * num_bands, pitch])  # frequency zero, put an octave and a half lower
    width = F.pad(pitch.diff().clamp(min=1.0), (0, 1), value=1.0)
    half = round(num_bands / 2)
    away = (pitch - torch.arange(num_bands)[:, None] + half).remainder(num_bands) - half
    bands = F.normalize(torch.exp(-0.5 * (2 * away / width).square()), dim=0)
    bands = bands * torch.exp(-0.5 * ((pitch / num_bands - centre_octave) / octave_width).square())
    return bands.roll(-3 * (num_bands // 12), 0)[:, : fft_size // 2 + 1].float()
