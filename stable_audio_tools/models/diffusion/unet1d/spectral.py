"""Waveforms as the channels of a spectrogram and back."""

import torch
from einops import rearrange
from torch import Tensor, nn


class SpectralChannels(nn.Module):
    """Short-time Fourier transform with every frequency a channel: (b, c, n) <-> (b, 2 * c * f, frames).

    With an odd `num_fft` there are exactly n / hop_length frames; f is num_fft // 2 + 1.
    """

    window: Tensor

    def __init__(self, num_fft: int, hop_length: int, window_length: int | None, use_complex: bool) -> None:
        super().__init__()
        self.num_fft = num_fft
        self.hop_length = hop_length
        self.use_complex = use_complex
        self.register_buffer("window", torch.hann_window(window_length or num_fft))

    @property
    def num_bins(self) -> int:
        return self.num_fft // 2 + 1

    def encode(self, waves: Tensor) -> Tensor:
        """Magnitudes then phases, or real parts then imaginary ones."""
        spectra = torch.stft(
            rearrange(waves, "b c n -> (b c) n"),
            self.num_fft,
            self.hop_length,
            window=self.window,
            win_length=len(self.window),
            normalized=True,
            return_complex=True,
        )
        pair = (spectra.real, spectra.imag) if self.use_complex else (spectra.abs(), spectra.angle())
        return torch.cat([rearrange(part, "(b c) f t -> b (c f) t", b=len(waves)) for part in pair], dim=1)

    def decode(self, channels: Tensor, length: int) -> Tensor:
        """Back to `length` samples."""
        first, second = rearrange(channels, "b (pair c f) t -> pair (b c) f t", pair=2, f=self.num_bins)
        spectra = torch.complex(first, second) if self.use_complex else torch.polar(first, second)
        waves = torch.istft(
            spectra,
            self.num_fft,
            self.hop_length,
            window=self.window,
            win_length=len(self.window),
            normalized=True,
            length=length,
        )
        return rearrange(waves, "(b c) n -> b c n", b=len(channels))
