"""Embedders without weights: statistics of log-mel spectra, which describe timbre and not content."""

from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchaudio.functional import create_dct, melscale_fbanks

from stable_audio_tools.core.config import register
from stable_audio_tools.evaluation.embedders.base import Embedder, HopSeconds, WindowSeconds, fill_up, windows_of

_WINDOW, _HOP = 2048, 512  # samples
_SMALLEST_POWER = 1e-10  # -100 dB

_SampleRate = Annotated[int, Field(ge=8000, description="sample rate of the analysis, in Hz")]
_Bands = Annotated[int, Field(ge=8, le=256, description="mel bands")]


class _Spectral(Embedder):
    def __init__(self, sample_rate: int, bands: int, window: float, hop: float | None, coefficients: int = 0) -> None:
        settings = {"bands": bands, **({"coefficients": coefficients} if coefficients else {})}
        super().__init__(sample_rate, windows_of(window, hop), settings)
        self.bands = bands

    @cached_property
    def _bank(self) -> Tensor:
        bank: Tensor = melscale_fbanks(
            _WINDOW // 2 + 1, 0.0, self.sample_rate / 2, self.bands, self.sample_rate, norm="slaney", mel_scale="slaney"
        )
        return bank

    def log_mel(self, audio: Tensor) -> Tensor:
        """Compute log-mel spectra (b, frames, bands) of (b, n), in units of 10 dB."""
        spectrum = torch.stft(
            fill_up(audio, _WINDOW), _WINDOW, _HOP, window=torch.hann_window(_WINDOW, device=audio.device),
            return_complex=True,
        )  # fmt: skip
        power = (spectrum.real.square() + spectrum.imag.square()) / _WINDOW
        return (power.mT @ self._bank.to(audio.device)).clamp(min=_SMALLEST_POWER).log10()


@register("embedder", "logmel")
class LogmelEmbedder(_Spectral):
    """Mean and standard deviation of each log-mel band over a window; no weights."""

    def __init__(
        self,
        sample_rate: _SampleRate = 32000,
        bands: _Bands = 64,
        window_seconds: WindowSeconds = 1.0,
        hop_seconds: HopSeconds = None,
    ) -> None:
        super().__init__(sample_rate, bands, window_seconds, hop_seconds)

    def embed(self, audio: Tensor) -> Tensor:
        mel = self.log_mel(audio)
        return torch.cat([mel.mean(1), mel.std(1, correction=0)], dim=-1)[:, None]


@register("embedder", "mfcc")
class MfccEmbedder(_Spectral):
    """Mean and standard deviation over a window of cepstral coefficients and of their changes; no weights."""

    def __init__(
        self,
        sample_rate: _SampleRate = 32000,
        bands: _Bands = 64,
        coefficients: Annotated[int, Field(ge=2, le=64, description="cepstral coefficients")] = 20,
        window_seconds: WindowSeconds = 1.0,
        hop_seconds: HopSeconds = None,
    ) -> None:
        super().__init__(sample_rate, max(bands, coefficients), window_seconds, hop_seconds, coefficients)
        self.coefficients = coefficients

    def embed(self, audio: Tensor) -> Tensor:
        basis = create_dct(self.coefficients, self.bands, norm="ortho").to(audio.device)
        cepstrum = self.log_mel(audio) @ basis  # (b, frames, coefficients)
        changes = cepstrum.diff(dim=1)
        parts = [moment for x in (cepstrum, changes) for moment in (x.mean(1), x.std(1, correction=0))]
        return torch.cat(parts, dim=-1)[:, None]
