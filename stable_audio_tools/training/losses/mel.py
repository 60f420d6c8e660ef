"""Distance of mel spectrograms at several resolutions, as the Descript audio codec measures it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks


class MelSpectrogramLoss(nn.Module):
    """L1 distance of mel magnitudes and of the logarithm (base 10) of their `pow`-th power, summed over resolutions."""

    def __init__(
        self,
        sample_rate: int,
        n_mels: Sequence[int] = (150, 80),
        window_lengths: Sequence[int] = (2048, 512),
        clamp_eps: float = 1e-5,
        mag_weight: float = 1.0,
        log_weight: float = 1.0,
        pow: float = 2.0,
        mel_fmin: Sequence[float] | None = None,
        mel_fmax: Sequence[float | None] | None = None,
    ) -> None:
        super().__init__()
        lows = mel_fmin or [0.0] * len(window_lengths)
        highs = mel_fmax or [None] * len(window_lengths)
        counts = {"n_mels": len(n_mels), "mel_fmin": len(lows), "mel_fmax": len(highs)}
        for name, count in counts.items():
            if count != len(window_lengths):
                raise ValueError(f"{name} has {count} entries for {len(window_lengths)} window_lengths")
        self.window_lengths, self.clamp_eps, self.pow = tuple(window_lengths), clamp_eps, pow
        self.mag_weight, self.log_weight = mag_weight, log_weight
        for index, (bands, size, low, high) in enumerate(zip(n_mels, window_lengths, lows, highs)):
            top = high if high is not None else sample_rate / 2
            bank = melscale_fbanks(size // 2 + 1, low, top, bands, sample_rate, norm="slaney", mel_scale="slaney")
            self.register_buffer(f"bank_{index}", bank, persistent=False)
            self.register_buffer(f"window_{index}", torch.hann_window(size), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y (b, c, n)"""
        terms = [self._distance(*(self._mel(signal, index) for signal in (x, y))) for index in self._resolutions]
        return torch.stack(terms).sum()

    @property
    def _resolutions(self) -> range:
        return range(len(self.window_lengths))

    def _mel(self, audio: Tensor, index: int) -> Tensor:
        size = self.window_lengths[index]
        window, bank = self.get_buffer(f"window_{index}"), self.get_buffer(f"bank_{index}")
        spectrum = torch.stft(audio.flatten(0, 1).float(), size, size // 4, window=window, return_complex=True)
        return spectrum.abs().transpose(1, 2) @ bank  # (b c, frames, mels)

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        log_x, log_y = (mel.clamp(self.clamp_eps).pow(self.pow).log10() for mel in (x, y))
        return self.log_weight * F.l1_loss(log_x, log_y) + self.mag_weight * F.l1_loss(x, y)
