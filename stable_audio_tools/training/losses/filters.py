"""Fixed filters of the spectral losses: weightings in time, mel and chroma bands in frequency."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import scipy.signal
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.generations import Generation, current_generation
from stable_audio_tools.models.transforms import chroma_bands

__all__ = ["FIRFilter", "FilterType", "a_weighting_taps", "chroma_bands", "mel_bands"]

FilterType = Literal["hp", "fd", "aw", "kw"]


def _a_weighting(sample_rate: float) -> tuple[Any, Any]:
    """Return numerator and denominator of A-weighting (IEC 61672) at a sample rate."""
    poles_hz = (20.598997, 107.65265, 737.86223, 12194.217)
    lowest, low, middle, highest = (2 * math.pi * frequency for frequency in poles_hz)
    gain_at_1_khz = 1.9997  # decibels, so that 1 kHz passes unchanged
    numerator = [highest**2 * 10 ** (gain_at_1_khz / 20), 0, 0, 0, 0]
    denominator = np.poly([-highest, -highest, -lowest, -lowest, -middle, -low])
    return scipy.signal.bilinear(numerator, denominator, fs=sample_rate)


def _k_weighting(sample_rate: float) -> tuple[Any, Any]:
    """Return numerator and denominator of K-weighting (after ITU-R BS.1770): a high pass and a high shelf."""
    low, shelf = 2 * math.pi * 38.135, 2 * math.pi * 1681.974
    shelf_width, shelf_gain = shelf / 1.69, 10 ** (4 / 20)
    numerator = np.polymul([1, 0, 0], [shelf_gain, shelf_gain * shelf_width, shelf**2])
    denominator = np.polymul([1, 2 * low, low**2], [1, shelf_width, shelf**2])
    return scipy.signal.bilinear(numerator, denominator, fs=sample_rate)


def a_weighting_taps(sample_rate: float, num_taps: int) -> list[float]:
    """Return a linear-phase filter with the magnitude response of A-weighting, fitted by least squares."""
    frequencies, response = scipy.signal.freqz(*_a_weighting(sample_rate), worN=512, fs=sample_rate)
    taps: list[float] = scipy.signal.firls(num_taps, frequencies, np.abs(response), fs=sample_rate).tolist()
    return taps


def _sampled_taps(analog: tuple[Any, Any], sample_rate: float, num_taps: int, reference_hz: float) -> list[float]:
    """Return a linear-phase filter by frequency sampling, with a gain of one at the reference frequency."""
    frequencies = np.linspace(0, sample_rate / 2, 8193)
    response = np.abs(scipy.signal.freqz(*analog, worN=frequencies, fs=sample_rate)[1])
    taps = scipy.signal.firwin2(num_taps, frequencies, response, fs=sample_rate)
    gain = np.abs(np.sum(taps * np.exp(-2j * math.pi * reference_hz / sample_rate * np.arange(num_taps))))
    scaled: list[float] = (taps / gain).tolist()
    return scaled


class FIRFilter(nn.Module):
    """Pre-emphasis of (b, c, n), the length kept (Wright & Välimäki 2019).

    "aw" A-weighting, "kw" K-weighting, "hp" first-order high pass, "fd" folded differentiator. In 0.0.20 the default is
    "kw" with 257 taps, weightings have a gain of one at `ref_hz`, and the ends are extended by `pad_mode`.
    """

    def __init__(
        self,
        filter_type: FilterType | None = None,
        coef: float = 0.85,
        fs: float = 44100,
        ntaps: int | None = None,
        pad_mode: str = "reflect",
        ref_hz: float = 1000.0,
        version: Generation | None = None,
    ) -> None:
        super().__init__()
        published = (version or current_generation()) == "0.0.19"
        filter_type = filter_type or ("hp" if published else "kw")
        count = ntaps or (101 if published else 257)
        if count % 2 == 0:
            raise ValueError(f"ntaps must be odd, got {count}; use {count + 1}")
        designs: dict[str, Callable[[], list[float]]] = {
            "hp": lambda: [1.0, -coef, 0.0] if published else [1.0, -coef],
            "fd": lambda: [1.0, 0.0, -coef],
            "aw": lambda: (
                a_weighting_taps(fs, count) if published else _sampled_taps(_a_weighting(fs), fs, count, ref_hz)
            ),
            "kw": lambda: _sampled_taps(_k_weighting(fs), fs, count, ref_hz),
        }
        if filter_type not in designs:
            raise ValueError(f"no filter named {filter_type!r}; allowed: {', '.join(designs)}")
        taps = designs[filter_type]()
        self.pad_mode = None if published else pad_mode
        self.margin = (len(taps) - 1) // 2
        self.fir = nn.Conv1d(1, 1, len(taps), padding=len(taps) // 2 if published else 0, bias=False)
        self.fir.weight = nn.Parameter(torch.tensor([[taps]]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        mono = x.flatten(0, 1)[:, None]
        if self.pad_mode is not None:
            mono = F.pad(mono, (self.margin, self.margin), mode=self.pad_mode)
        filtered: Tensor = self.fir(mono)
        return filtered.unflatten(0, x.shape[:2]).squeeze(2)


def mel_bands(sample_rate: int, fft_size: int, num_bands: int) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, (bands, bins)."""
    bands: Tensor = torchaudio.functional.melscale_fbanks(
        fft_size // 2 + 1, 0.0, sample_rate / 2, num_bands, sample_rate, norm="slaney", mel_scale="slaney"
    )
    return bands.T
