"""Short-time spectra with exactly n // hop frames for n samples, and their inverse.

centred   frame k stands over sample k * hop; zeros lie outside; the one frame that begins after the last full hop is
          left out
between   frame k stands over the middle of its hop; the signal is mirrored outside (the framing of HiFi-GAN's family)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_ENVELOPE = 1e-2  # of its peak: where windows hardly reach, dividing by them would raise noise


@dataclass(frozen=True)
class Framing:
    """Length of a spectrum, of its window and of a hop, in samples, and where frames stand."""

    n_fft: int
    hop_length: int
    win_length: int
    place: Literal["centred", "between"]

    @property
    def margin(self) -> int:
        """Samples that the first frame reaches back before the signal."""
        return self.n_fft // 2 if self.place == "centred" else (self.n_fft - self.hop_length) // 2

    def window(self, like: Tensor) -> Tensor:
        """Periodic Hann, zeros on both sides up to n_fft."""
        window = torch.hann_window(self.win_length, dtype=like.dtype, device=like.device)
        before = (self.n_fft - self.win_length) // 2
        return F.pad(window, (before, self.n_fft - self.win_length - before))

    def analyse(self, audio: Tensor) -> Tensor:
        """(b, n) -> complex (b, bins, n // hop)"""
        frames = audio.shape[-1] // self.hop_length
        padded_length = (frames - 1) * self.hop_length + self.n_fft
        after = padded_length - self.margin - audio.shape[-1]
        if self.place == "centred":
            padded = F.pad(audio, (self.margin, max(0, after)))
        else:
            padded = pad_mirrored(audio, self.margin, max(0, after))
        return torch.stft(
            padded[..., :padded_length],
            self.n_fft,
            self.hop_length,
            window=self.window(audio),
            center=False,
            return_complex=True,
        )

    def envelope(self, frames: int, like: Tensor) -> Tensor:
        """The squares of all windows over `frames` hops, which `synthesise` divides by."""
        square = self.window(like).square()
        return self._overlap_add(square.expand(1, frames, -1)).clamp_min(_LEAST_ENVELOPE * square.max())

    def synthesise(self, spectra: Tensor, envelope: Tensor | None = None) -> Tensor:
        """Complex (b, bins, t) -> (b, t * hop): the signal whose spectra are nearest (Griffin & Lim 1984, eq. 6)."""
        waves = torch.fft.irfft(spectra.mT, n=self.n_fft)  # (b, t, n_fft)
        summed = self._overlap_add(waves * self.window(waves))
        envelope = self.envelope(waves.shape[1], waves) if envelope is None else envelope
        return (summed / envelope)[:, self.margin : self.margin + waves.shape[1] * self.hop_length]

    def _overlap_add(self, waves: Tensor) -> Tensor:  # (b, t, n_fft) -> (b, at least margin + t * hop)
        hop, frames = self.hop_length, waves.shape[1]
        blocks = F.pad(waves, (0, -self.n_fft % hop)).unflatten(-1, (-1, hop))  # (b, t, r, hop)
        reach = max(blocks.shape[2], self.margin // hop + 2)
        summed = waves.new_zeros(len(waves), frames + reach, hop)
        for number, block in enumerate(blocks.unbind(2)):
            summed[:, number : number + frames] += block
        return summed.flatten(1)


def pad_mirrored(signal: Tensor, before: int, after: int) -> Tensor:
    """Reflect at both ends, as often as a short signal needs."""
    length = signal.shape[-1]
    if length > max(before, after):
        return F.pad(signal[:, None], (before, after), "reflect")[:, 0]
    period = max(1, 2 * (length - 1))
    place = torch.arange(-before, length + after, device=signal.device) % period
    return signal[..., torch.where(place < length, place, period - place)]
