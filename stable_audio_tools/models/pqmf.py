"""Published import path of the filter bank."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.models.pretransforms.pqmf import PQMF, design_lowpass, design_prototype, modulate

__all__ = [
    "PQMF",
    "design_kaiser_lowpass",
    "design_prototype_filter",
    "generate_modulated_filter_bank",
    "pad_signal",
]


def design_kaiser_lowpass(angular_cutoff: float, attenuation: float) -> Tensor:
    """Return a low-pass of odd length under a Kaiser window, (taps,)."""
    return torch.from_numpy(design_lowpass(angular_cutoff, attenuation))


def design_prototype_filter(attenuation: float, num_bands: int) -> Tensor:
    """Return the low-pass from which all bands are modulated, (taps,)."""
    return torch.from_numpy(design_prototype(attenuation, num_bands))


def generate_modulated_filter_bank(prototype_filter: Tensor, num_bands: int) -> Tensor:
    """Return one filter per band, (bands, taps), zero-padded to a power of two."""
    return torch.from_numpy(modulate(prototype_filter.detach().cpu().double().numpy(), num_bands))


def pad_signal(signal: Tensor, num_bands: int) -> Tensor:
    """Pad a signal (..., n) with silence to a multiple of `num_bands`."""
    return F.pad(signal, (0, -signal.shape[-1] % num_bands))
