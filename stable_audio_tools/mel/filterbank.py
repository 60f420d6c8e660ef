"""Triangular mel bands with the scale and the norm of Slaney's Auditory Toolbox (1998), as librosa has by default.

The scale is linear up to 1 kHz (15 mels) and logarithmic above, 27 mels for a factor of 6.4.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_HERTZ_PER_MEL = 200 / 3
_KNEE_HERTZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MelBands:
    """The bands of a spectrum; `fmax` None is half the sample rate."""

    sample_rate: int
    n_fft: int
    n_mels: int
    fmin: float = 0.0
    fmax: float | None = None

    @property
    def top(self) -> float:
        return self.sample_rate / 2 if self.fmax is None else self.fmax


def hertz_to_mel(hertz: _Floats) -> _Floats:
    """Convert frequencies to Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    above = _KNEE_MEL + np.log(np.maximum(hertz, _KNEE_HERTZ) / _KNEE_HERTZ) / _LOG_STEP
    return np.where(hertz < _KNEE_HERTZ, hertz / _HERTZ_PER_MEL, above)


def mel_to_hertz(mel: _Floats) -> _Floats:
    """Convert Slaney's mels to frequencies in Hz."""
    above = _KNEE_HERTZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * _HERTZ_PER_MEL, above)


@lru_cache(maxsize=16)
def mel_filterbank(bands: MelBands) -> NDArray[np.float32]:
    """Weights (n_mels, n_fft // 2 + 1); each triangle has area 2 / its width in Hz."""
    low, high = hertz_to_mel(np.array([bands.fmin, bands.top]))
    edges = mel_to_hertz(np.linspace(low, high, bands.n_mels + 2))
    bins = np.fft.rfftfreq(bands.n_fft, 1 / bands.sample_rate)
    slopes, widths = edges[:, None] - bins, np.diff(edges)
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    # Rounded before the norm, in the order that librosa rounds in.
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    bank: NDArray[np.float32] = (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    bank.flags.writeable = False
    return bank


@dataclass(frozen=True)
class Health:
    """The numerical rank of a filterbank."""

    rank: int
    empty: int  # bands that no bin of the spectrum falls into

    def problem(self, bands: MelBands) -> str | None:
        """Return a sentence if the bands cannot be separated again; None at full rank."""
        if self.rank == bands.n_mels:
            return None
        empty = f" ({self.empty} hold no bin at all)" if self.empty else ""
        return (
            f"{bands.n_mels} mel bands{empty} of n_fft {bands.n_fft} at {bands.sample_rate} Hz have rank {self.rank}: "
            "low bands are mixtures of each other, and audio decoded from them is less exact; take n_fft "
            f"{2 * bands.n_fft}, or fewer bands"
        )


@lru_cache(maxsize=16)
def check_filterbank(bands: MelBands) -> Health:
    """Numerical rank and empty bands."""
    bank = mel_filterbank(bands)
    return Health(int(np.linalg.matrix_rank(bank)), int((bank.max(axis=1) == 0).sum()))
