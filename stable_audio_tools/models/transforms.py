"""Fixed linear transforms of audio: cosine transforms, a modulated filter bank, tight short-time Fourier frames.

A frame is tight when the energy of the coefficients is the energy of the signal, apart from its ends.
"""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import MelScale

__all__ = [
    "MDCT",
    "PQMF",
    "STDCT",
    "ILDTransform",
    "MeanChannelLog1pTransform",
    "TightSpectrogram",
    "chroma_bands",
    "dct",
    "dct_2d",
    "design_prototype_filter",
    "idct",
    "idct_2d",
    "tight_one_sided_complex_stft",
]

_A4 = 440.0
Demodulation = Literal["sign", "rot"]


def dct(x: Tensor, norm: Literal["ortho"] | None = None) -> Tensor:
    """Return the cosine transform (type II) over the last axis, scaled as `scipy.fft.dct` scales it."""
    length = x.shape[-1]
    spectrum = torch.fft.rfft(torch.cat([x, x.flip(-1)], dim=-1))[..., :length]
    angle = math.pi / (2 * length) * torch.arange(length, dtype=x.dtype, device=x.device)
    out = spectrum.real * angle.cos() + spectrum.imag * angle.sin()
    return out * _ortho(x) if norm == "ortho" else out


def idct(X: Tensor, norm: Literal["ortho"] | None = None) -> Tensor:
    """Return the inverse of `dct` with the same `norm`."""
    length = X.shape[-1]
    if norm == "ortho":
        X = X / _ortho(X)
    angle = math.pi / (2 * length) * torch.arange(length, dtype=X.dtype, device=X.device)
    spectrum = F.pad(torch.complex(X * angle.cos(), X * angle.sin()), (0, 1))
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length]


def _ortho(like: Tensor) -> Tensor:
    """Return the factors that make the cosine transform orthogonal."""
    factors = torch.full_like(like[(0,) * (like.ndim - 1)], math.sqrt(1 / (2 * like.shape[-1])))
    factors[0] *= math.sqrt(0.5)
    return factors


def dct_2d(x: Tensor, norm: Literal["ortho"] | None = None) -> Tensor:
    """Return the cosine transform over the last two axes."""
    return dct(dct(x, norm).mT, norm).mT


def idct_2d(X: Tensor, norm: Literal["ortho"] | None = None) -> Tensor:
    """Return the inverse of `dct_2d`."""
    return idct(idct(X, norm).mT, norm).mT


class STDCT(nn.Module):
    """Short-time cosine transform: (b, 1, hop_size * t) or (b, hop_size * t) -> (b, N, t), or t + 1 with `center`.

    Without `center`, an odd `hop_size` leaves out the last frame.
    """

    filter: Tensor
    window_square: Tensor

    def __init__(
        self,
        N: int,
        hop_size: int,
        win_size: int | None = None,
        win_type: str | None = "hann",
        center: bool = False,
        window: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.N, self.hop_size = N, hop_size
        overlap = N if center else N - hop_size
        self.padding, self.output_padding = (overlap + 1) // 2, overlap % 2
        self.clip = not center and hop_size % 2 == 1
        if window is None and win_type is None:
            window = torch.ones(N, device=device)
        elif window is None:
            window = getattr(torch, f"{win_type}_window")(win_size or N, device=device)
        missing = N - len(window)
        if missing < 0:
            raise ValueError(f"the window has {len(window)} samples and N is {N}; use a window of at most N samples")
        window = F.pad(window, (missing // 2, missing - missing // 2))
        angle = math.pi / N * torch.arange(N, device=device)[:, None] * (torch.arange(N, device=device) + 0.5)
        basis = torch.cos(angle) * math.sqrt(2 / N)
        basis[0] *= math.sqrt(0.5)
        self.register_buffer("filter", (basis * window)[:, None].to(dtype=dtype))
        self.register_buffer("window_square", window.square()[None, :, None].to(dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            x = x[:, None]
        out = F.conv1d(x, self.filter, stride=self.hop_size, padding=self.padding)
        return out[..., :-1] if self.clip else out

    def inverse(self, spec: Tensor) -> Tensor:
        """Return audio (b, 1, hop_size * t) for a spectrum (b, N, t)."""
        audio = self._overlap(spec, self.filter)
        envelope = self._overlap(self.window_square.new_ones(1, 1, spec.shape[-1]), self.window_square.mT)
        if not envelope.ne(0).all():
            raise ValueError(f"windows {self.hop_size} samples apart leave gaps, so the audio cannot be rebuilt")
        return audio / envelope

    def _overlap(self, frames: Tensor, kernel: Tensor) -> Tensor:
        return F.conv_transpose1d(frames, kernel, None, self.hop_size, self.padding, self.output_padding)


class MDCT(nn.Module):
    """Modified cosine transform of frames of 2N samples, N apart: (b, 1, N * t) -> (b, N, t + 1)."""

    filter: Tensor

    def __init__(
        self,
        N: int,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.N, self.normalize = N, normalize
        band, sample = torch.arange(N, device=device)[:, None], torch.arange(2 * N, device=device)
        basis = torch.cos(math.pi / N * (sample + 0.5 + N / 2) * (band + 0.5))
        self.register_buffer("filter", (basis / math.sqrt(N) if normalize else basis)[:, None].to(dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.filter, stride=self.N, padding=self.N)

    def inverse(self, x: Tensor) -> Tensor:
        """Return audio (b, 1, N * t) for a spectrum (b, N, t + 1)."""
        basis = self.filter if self.normalize else self.filter / self.N
        return F.conv_transpose1d(x, basis, stride=self.N, padding=self.N)


def design_prototype_filter(taps: int = 62, cutoff_ratio: float = 0.142, beta: float = 9.0) -> Tensor:
    """Return a low-pass of taps + 1 coefficients under a Kaiser window; the cutoff is a share of half the rate."""
    if taps % 2:
        raise ValueError(f"taps is {taps}, and must be even; use {taps + 1}")
    if not 0 < cutoff_ratio < 1:
        raise ValueError(f"cutoff_ratio is {cutoff_ratio}, and must be between 0 and 1")
    time = torch.arange(taps + 1, dtype=torch.float64) - taps / 2
    window = torch.kaiser_window(taps + 1, periodic=False, beta=beta, dtype=torch.float64)
    return cutoff_ratio * torch.sinc(cutoff_ratio * time) * window


class CosineModulatedFilterBank(nn.Module):
    """Cosine-modulated filter bank: (b, 1, n) -> (b, subbands, n / subbands)."""

    pqmf_filter: Tensor

    def __init__(self, subbands: int = 4, taps: int = 62, cutoff_freq: float = 0.142, beta: float = 9.0) -> None:
        super().__init__()
        self.taps, self.subbands = taps, subbands
        band = torch.arange(subbands)[:, None]
        time = torch.arange(taps + 1) - taps / 2
        phase = torch.where(band % 2 == 0, math.pi / 4, -math.pi / 4)
        carrier = torch.cos((2 * band + 1) * math.pi / (2 * subbands) * time + phase)
        prototype = design_prototype_filter(taps, cutoff_freq, beta).float()
        self.register_buffer("pqmf_filter", (2 * math.sqrt(subbands) * prototype * carrier)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.analysis(x)

    def analysis(self, x: Tensor) -> Tensor:
        """Split audio (b, n) or (b, 1, n) into bands (b, subbands, n / subbands)."""
        x = x[:, None] if x.ndim == 2 else x
        return F.conv1d(x, self.pqmf_filter, stride=self.subbands, padding=self.taps // 2)

    def synthesis(self, x: Tensor) -> Tensor:
        """Join bands (b, subbands, t) to audio (b, 1, t * subbands)."""
        return F.conv_transpose1d(
            x, self.pqmf_filter, stride=self.subbands, padding=self.taps // 2, output_padding=self.subbands - 1
        )


PQMF = CosineModulatedFilterBank  # the published name


def tight_window(n_fft: int, hop: int) -> Tensor:
    """Return the power of a sine whose squares, `hop` samples apart, add up to one."""
    overlap = n_fft // hop
    if overlap < 2:
        raise ValueError(f"hop is {hop}; a tight frame of {n_fft} samples needs a hop of at most {n_fft // 2}")
    power = overlap - 1
    mean = math.comb(2 * power, power) / 4**power  # of the squared window
    return torch.sin(math.pi * torch.arange(n_fft) / n_fft) ** power / math.sqrt(overlap * mean)


def one_sided_weights(n_fft: int) -> Tensor:
    """Return the root of how often a bin occurs in the whole spectrum: 1 at the ends, the square root of 2 between."""
    weights = torch.full((n_fft // 2 + 1,), math.sqrt(2.0))
    weights[0] = 1.0
    if n_fft % 2 == 0:
        weights[-1] = 1.0
    return weights


def alternating_signs(bins: int, frames: int, like: Tensor) -> Tensor:
    """Return -1 where bin and frame are both odd, else 1: (bins, frames). At half overlap it stops phases turning."""
    odd = [torch.arange(count, device=like.device) % 2 == 1 for count in (bins, frames)]
    return 1.0 - 2.0 * (odd[0][:, None] & odd[1]).to(like.dtype)


def tight_one_sided_complex_stft(
    x: Tensor, n_fft: int, hop: int | None = None, center: bool = False, demod_mode: Demodulation | None = None
) -> Tensor:
    """Return the spectrum of a tight frame, x (b, n) -> complex (b, bins, frames).

    `hop` is half of `n_fft` if omitted. `demod_mode` stops the turning of phases between frames: "sign" for half
    overlap, "rot" for any.
    """
    if n_fft % 2:
        raise ValueError(f"n_fft is {n_fft}, and must be even; use {n_fft + 1}")
    hop = hop or n_fft // 2
    window = tight_window(n_fft, hop).to(x)
    spectrum = torch.stft(x, n_fft, hop, window=window, center=center, normalized=True, return_complex=True)
    spectrum = spectrum * one_sided_weights(n_fft).to(x)[:, None]
    bins, frames = spectrum.shape[-2:]
    if demod_mode == "sign":
        return spectrum * alternating_signs(bins, frames, x)
    if demod_mode == "rot":
        turns = torch.arange(bins, device=x.device)[:, None] * torch.arange(frames, device=x.device) * hop % n_fft
        angle = -2 * math.pi / n_fft * turns.float()
        return spectrum * torch.polar(torch.ones_like(angle), angle).to(spectrum.dtype)
    return spectrum


class TightSpectrogram(nn.Module):
    """Spectrum of a tight frame with half overlap: (b, n) or (b, c, n) -> complex (..., bins, frames).

    With `power`, magnitudes to that power. `win_length` and `hop_length` follow from `n_fft`.
    """

    window: Tensor
    herm_sqrt: Tensor

    def __init__(
        self,
        n_fft: int = 1024,
        win_length: int | None = None,
        hop_length: int | None = None,
        pad: int = 0,
        window_fn: object = None,
        power: float | None = None,
        normalized: bool = True,
        wkwargs: object = None,
        center: bool = False,
        pad_mode: str = "reflect",
        onesided: bool = True,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.n_fft = self.win_length = n_fft
        self.hop_length = n_fft // 2
        for name, value, fixed in (("win_length", win_length, n_fft), ("hop_length", hop_length, n_fft // 2)):
            if value not in (None, fixed):
                warnings.warn(f"{name} is {value}; a tight spectrogram with n_fft {n_fft} uses {fixed}", stacklevel=2)
        self.pad, self.power, self.normalized = pad, power, normalized
        self.center, self.pad_mode = center, pad_mode
        self.onesided, self.demodulate = onesided, demodulate
        self.register_buffer("window", tight_window(n_fft, self.hop_length), persistent=False)
        weights = one_sided_weights(n_fft) if onesided else torch.ones(n_fft)
        self.register_buffer("herm_sqrt", weights[:, None], persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        x = F.pad(waveform, (self.pad, self.pad), mode=self.pad_mode) if self.pad else waveform
        spectrum = torch.stft(
            x.reshape(-1, x.shape[-1]),
            self.n_fft,
            self.hop_length,
            window=self.window.to(x),
            center=self.center,
            pad_mode=self.pad_mode,
            normalized=self.normalized,
            onesided=self.onesided,
            return_complex=True,
        )
        spectrum = (spectrum * self.herm_sqrt.to(x)).unflatten(0, x.shape[:-1])
        if self.demodulate:
            spectrum = spectrum * alternating_signs(spectrum.shape[-2], spectrum.shape[-1], x)
        return spectrum if self.power is None else spectrum.abs().pow(self.power)


def chroma_bands(
    sample_rate: int,
    fft_size: int,
    num_bands: int = 12,
    centre_octave: float = 5.0,
    octave_width: float = 2.0,
    norm: float = 2.0,
) -> Tensor:
    """Return filters of pitch classes from C on, weighted towards an octave, (bands, bins) (Ellis 2007)."""
    frequencies = torch.arange(1, fft_size, dtype=torch.float64) * sample_rate / fft_size
    pitch = num_bands * torch.log2(frequencies / (_A4 / 16))  # in classes above A0
    pitch = torch.cat([pitch[:1] - 1.5 * num_bands, pitch])  # frequency zero, put an octave and a half lower
    width = F.pad(pitch.diff().clamp(min=1.0), (0, 1), value=1.0)
    half = round(num_bands / 2)
    away = (pitch - torch.arange(num_bands)[:, None] + half).remainder(num_bands) - half
    bands = F.normalize(torch.exp(-0.5 * (2 * away / width).square()), p=norm, dim=0)
    bands = bands * torch.exp(-0.5 * ((pitch / num_bands - centre_octave) / octave_width).square())
    return bands.roll(-3 * (num_bands // 12), 0)[:, : fft_size // 2 + 1].float()


class ILDTransform(nn.Module):
    """Level difference of two channels in mel bands: spectra (b, 2, bins, frames) -> (b, mels, frames)."""

    def __init__(self, sample_rate: int = 44100, n_fft: int = 2048, n_mels: int = 32, eps: float = 1e-3) -> None:
        super().__init__()
        self.mel_transform = MelScale(sample_rate=sample_rate, n_mels=n_mels, n_stft=n_fft // 2 + 1)
        self.eps = eps
        self.output_scale = abs(1 / math.log10(eps))

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.mel_transform(x) + self.eps).log10()[:, :2].unbind(1)
        return (left - right) * self.output_scale


class MeanChannelLog1pTransform(nn.Module):
    """Logarithm of one plus the mean of the channels, (b, c, bins, frames) -> (b, bins, frames)."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1).log1p()
