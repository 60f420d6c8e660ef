"""Distances of a reconstruction from its original, as reported for codecs.

Sounds are compared in blocks of half a minute, weighted by their lengths, so that memory does not grow with the length.
Higher is better for SI-SDR, lower for the others.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

_BLOCK_SECONDS = 30
_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # (fft, hop, window), Yamamoto et al. 2020
_MEL_RESOLUTIONS = ((2048, 150), (512, 80))  # (window, bands), hops of a quarter of the window
_SMALLEST_POWER = 1e-8
_SHORTEST = 2048  # samples


class Metrics(NamedTuple):
    """SI-SDR in dB (None for silence), multi-resolution STFT distance, mel distance in dB."""

    si_sdr: float | None
    mrstft: float
    mel: float


def compare(decoded: Tensor, original: Tensor, sample_rate: int) -> Metrics:
    """Compare (c, n) with its original (c, n); channels are averaged."""
    decoded, original = decoded.float(), original.float()
    pairs = list(zip(*(_blocks(audio, _BLOCK_SECONDS * sample_rate) for audio in (decoded, original))))
    lengths = torch.tensor([float(x.shape[-1]) for x, _ in pairs])
    distances = torch.tensor([[float(mrstft(x, y)), float(mel_distance(x, y, sample_rate))] for x, y in pairs])
    means = (distances * lengths[:, None]).sum(0) / lengths.sum()
    return Metrics(si_sdr(decoded, original), float(means[0]), float(means[1]))


def si_sdr(decoded: Tensor, original: Tensor) -> float | None:
    """Return the scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), mean over channels."""
    x, y = (audio.double() - audio.double().mean(-1, keepdim=True) for audio in (decoded, original))
    energy = y.square().sum(-1)
    audible = energy > 0
    if not bool(audible.any()):
        return None
    x, y, energy = x[audible], y[audible], energy[audible]
    target = y * ((x * y).sum(-1) / energy)[:, None]
    ratio = target.square().sum(-1) / (x - target).square().sum(-1).clamp(min=1e-20)
    return float(10 * ratio.clamp(min=1e-20).log10().mean())


def mrstft(decoded: Tensor, original: Tensor) -> Tensor:
    """Return spectral convergence plus L1 of log magnitudes, mean over resolutions and channels."""
    terms = []
    for size, hop, window in _RESOLUTIONS:
        x, y = (_magnitudes(audio, size, hop, window) for audio in (decoded, original))
        convergence = torch.linalg.matrix_norm(y - x) / torch.linalg.matrix_norm(y).clamp(min=1e-8)
        terms.append(convergence.mean() + F.l1_loss(x.log(), y.log()))
    return torch.stack(terms).mean()


def mel_distance(decoded: Tensor, original: Tensor, sample_rate: int) -> Tensor:
    """Return the mean difference of mel magnitudes in dB over two resolutions, down to -100 dB."""
    terms = []
    for size, bands in _MEL_RESOLUTIONS:
        bank = _mel_bank(sample_rate, size, bands)
        x, y = (
            20 * (_magnitudes(a, size, size // 4, size).mT @ bank).clamp(min=1e-5).log10() for a in (decoded, original)
        )
        terms.append(F.l1_loss(x, y))
    return torch.stack(terms).mean()


@lru_cache(maxsize=8)
def _mel_bank(sample_rate: int, size: int, bands: int) -> Tensor:
    bank: Tensor = melscale_fbanks(
        size // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, norm="slaney", mel_scale="slaney"
    )
    return bank


def _magnitudes(audio: Tensor, size: int, hop: int, window: int) -> Tensor:
    """Compute magnitudes (c, bins, frames) of (c, n)."""
    spectrum = torch.stft(audio, size, hop, window, torch.hann_window(window), return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=_SMALLEST_POWER).sqrt()


def _blocks(audio: Tensor, length: int) -> list[Tensor]:
    """Cut (c, n) into blocks; silence is appended to blocks that are too short for a spectrum."""
    return [F.pad(block, (0, max(0, _SHORTEST - block.shape[-1]))) for block in audio.split(length, dim=-1)]
