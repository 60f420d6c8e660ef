"""Two transforms of audio to a mel spectrogram in [-1, 1], and back to physical units.

| variant | a band is | floor (-1) | top (1) |
|---|---|---|---|
| `db_image` | power in dB below a reference | `top_db` below it | the reference |
| `bigvgan` | natural logarithm of the amplitude, at least 1e-5 | `range[0]` | `range[1]` |

Both give n // hop frames for n samples. With `quantize` 8 values are those of an 8-bit image, p / 255 * 2 - 1.
"""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.mel.filterbank import MelBands, mel_filterbank
from stable_audio_tools.mel.spectra import Framing

Reference = Literal["slice_max", "full_scale"] | float

BIGVGAN_RANGE = (-11.5129, 2.1)  # ln(1e-5) is digital silence; music at full scale hardly ever exceeds 2.1
_LEAST_POWER = 1e-10
_LEAST_AMPLITUDE = 1e-5


class MelTransform(ABC):
    """Audio (b, n) to bands in [-1, 1] (b, mels, n // hop), one channel at a time."""

    power: int  # bands hold magnitudes of the spectrum to this power

    def __init__(self, bands: MelBands, framing: Framing, quantize: int | None = None) -> None:
        self.bands = bands
        self.framing = framing
        self.levels = None if quantize is None else 2**quantize - 1

    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio, in float64 where values are quantised: the last digits can decide between two levels."""
        frames = audio.shape[-1] // self.framing.hop_length
        if not frames:
            raise ValueError(
                f"audio of {audio.shape[-1]} samples is shorter than one frame of the mel spectrogram "
                f"({self.framing.hop_length} samples); pad it"
            )
        precise = audio.dtype == torch.float64 or (self.levels is not None and audio.device.type != "mps")
        unit = self._to_unit(self.framing.analyse(audio.double() if precise else audio.float())).clamp(0, 1)
        if self.levels is not None:
            unit = torch.floor(unit * self.levels + 0.5) / self.levels
        return (unit * 2 - 1).to(audio.dtype)

    def filterbank(self, like: Tensor) -> Tensor:
        """(mels, bins)"""
        return torch.tensor(mel_filterbank(self.bands), dtype=like.dtype, device=like.device)

    @property
    def settings(self) -> dict[str, object]:
        """Every setting that affects the bands, by its key in a config."""
        bands, framing = self.bands, self.framing
        return {
            "sample_rate": bands.sample_rate,
            "n_fft": bands.n_fft,
            "hop_length": framing.hop_length,
            "win_length": framing.win_length,
            "n_mels": bands.n_mels,
            "fmin": bands.fmin,
            "fmax": bands.top,
            "levels": self.levels,
        }

    @abstractmethod
    def _to_unit(self, spectra: Tensor) -> Tensor:
        """Complex spectra (b, bins, t) to bands, 0 at the floor and 1 at the top."""

    @abstractmethod
    def to_physical(self, mel: Tensor) -> Tensor:
        """Convert bands in [-1, 1] to bands of the spectrum's `power`, on a linear scale."""


class DecibelMel(MelTransform):
    """Power in dB below the loudest band of the slice, below a full-scale sine, or below a given power."""

    power = 2

    def __init__(
        self,
        bands: MelBands,
        n_fft: int,
        hop_length: int,
        win_length: int,
        top_db: float = 80.0,
        ref: Reference = "full_scale",
        quantize: int | None = None,
    ) -> None:
        super().__init__(bands, Framing(n_fft, hop_length, win_length, "centred"), quantize)
        self.top_db = top_db
        self.ref = ref
        self.reference = full_scale_power(bands, win_length) if isinstance(ref, str) else float(ref)

    @property
    def settings(self) -> dict[str, object]:
        return {"variant": "db_image", **super().settings, "top_db": self.top_db, "ref": self.ref}

    def _to_unit(self, spectra: Tensor) -> Tensor:
        power = self.filterbank(spectra.real) @ spectra.abs().square()
        reference = power.amax((1, 2), keepdim=True) if self.ref == "slice_max" else power.new_tensor(self.reference)
        unit = (_decibels(power) - _decibels(reference) + self.top_db) / self.top_db
        # Silence has no loudest band; it is the floor, not all top.
        return torch.where(reference > _LEAST_POWER, unit, 0.0)

    def to_physical(self, mel: Tensor) -> Tensor:
        """Convert decibels to power; `slice_max` discards the level, so its loudest possible band gets power 1."""
        reference = 1.0 if self.ref == "slice_max" else self.reference
        return reference * 10 ** ((mel.clamp(-1, 1) - 1) * (self.top_db / 20))


class LogAmplitudeMel(MelTransform):
    """The input of BigVGAN, mapped from `range` to [-1, 1]."""

    power = 1

    def __init__(
        self,
        bands: MelBands,
        n_fft: int,
        hop_length: int,
        win_length: int,
        range: tuple[float, float] = BIGVGAN_RANGE,
        quantize: int | None = None,
    ) -> None:
        super().__init__(bands, Framing(n_fft, hop_length, win_length, "between"), quantize)
        self.range = range

    @property
    def settings(self) -> dict[str, object]:
        return {"variant": "bigvgan", **super().settings, "range": list(self.range)}

    def log_mel(self, audio: Tensor) -> Tensor:
        """(b, n) -> (b, mels, n // hop) in natural units, as BigVGAN is trained on."""
        return self._log_mel(self.framing.analyse(audio))

    def _log_mel(self, spectra: Tensor) -> Tensor:
        magnitude = torch.view_as_real(spectra).square().sum(-1).add(1e-9).sqrt()
        return (self.filterbank(magnitude) @ magnitude).clamp_min(_LEAST_AMPLITUDE).log()

    def _to_unit(self, spectra: Tensor) -> Tensor:
        low, high = self.range
        return (self._log_mel(spectra) - low) / (high - low)

    def to_log(self, mel: Tensor) -> Tensor:
        """Bands in [-1, 1] to natural units."""
        low, high = self.range
        return (mel.clamp(-1, 1) + 1) * ((high - low) / 2) + low

    def to_physical(self, mel: Tensor) -> Tensor:
        return self.to_log(mel).exp()


def full_scale_power(bands: MelBands, win_length: int) -> float:
    """Return the highest band power of a sine of amplitude 1 on a bin; a Hann window spreads it over neighbours."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    spread = np.abs(np.fft.fft(window, bands.n_fft) / 2) ** 2
    bank = mel_filterbank(bands).astype(np.float64)
    powers = np.fft.ifft(np.fft.fft(bank, bands.n_fft) * np.fft.fft(spread)).real
    return float(powers.max())


def _decibels(power: Tensor) -> Tensor:
    return power.clamp_min(_LEAST_POWER).log10() * 10
