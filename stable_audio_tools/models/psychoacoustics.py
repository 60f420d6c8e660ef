"""Masking: how loud noise may be at every time and frequency of a recording before a listener notices it.

The threshold spreads the power of each bin over its neighbours on the Bark scale and lets it ring on in time. Binaural
unmasking lowers it at low frequencies; as published, it compares single bins, which are incoherent only where one of
the two channels is nearly silent.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FLOOR = 1e-5
_FLATNESS_BINS = 5  # width of the neighbourhood in which tonality is measured
_SLOPES = (24.0, 27.0)  # decibels per Bark, below and above the masker
_BINAURAL_CORNER = 1500.0  # Hz; the difference of the channels matters less above
_FASTER = 0.3  # share of the ringing time that is left after a sudden change


def _bark(frequency: Tensor) -> Tensor:
    """Return the critical band of a frequency in Hz (Zwicker & Fastl)."""
    kilohertz = frequency / 1000
    return 13 * torch.atan(0.76 * kilohertz) + 3.5 * torch.atan((kilohertz / 7.5).square())


def _spreading(frequencies: Tensor) -> Tensor:
    """Return how the power of bin j masks bin i, (i, j); each row adds up to one, bins under 20 Hz mask nothing."""
    bark = _bark(frequencies)
    above = bark[:, None] - bark[None]  # distance of the masked bin above the masker
    decibels = -torch.where(above > 0, _SLOPES[1] * above, -_SLOPES[0] * above)
    shares = 10 ** (decibels / 10) * (frequencies >= 20)
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=_FLOOR)


def _absolute_threshold(frequencies: Tensor) -> Tensor:
    """Return the sensitivity of hearing as a power ratio (after Terhardt's curve in dB SPL)."""
    f = frequencies.clamp(20.0, 20_000.0) / 1000
    decibels = 3.64 * f**-0.8 - 6.5 * torch.exp(-0.6 * (f - 3.3).square()) + 1e-3 * f**4
    return 10 ** (-decibels / 10)


class PsychoacousticStereoNoise(nn.Module):
    """Noise in the shape of a recording's masking threshold, (b, c, n) -> (b, 2, n).

    One channel counts as two equal ones; of more, the first two are used. `win` is the window length, `n_fft` if None.
    """

    spreading: Tensor
    frequencies: Tensor
    sensitivity: Tensor
    boost: Tensor
    window: Tensor

    def __init__(
        self,
        sr: int = 44100,
        n_fft: int = 2048,
        hop: int = 512,
        win: int | None = None,
        alpha_tonality: float = 0.3,
        tonal_masking_offset_db: float = -14.0,
        noise_masking_offset_db: float = -6.0,
        post_mask_time_ms: float = 30.0,
        enable_bmld: bool = True,
        bmld_max_db: float = 6.0,
        snr_below_threshold_db: float = 10.0,
        min_noise_floor_db: float = -96.0,
        high_freq_boost_db: float = 3.0,
        adaptive_temporal: bool = True,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.smoothing = alpha_tonality
        self.offsets_db = (tonal_masking_offset_db, noise_masking_offset_db)
        self.ringing_frames = post_mask_time_ms / 1000 * sr / hop
        self.unmasking_db = bmld_max_db if enable_bmld else 0.0
        self.headroom = 10 ** (snr_below_threshold_db / 10)
        self.noise_floor = 10 ** (min_noise_floor_db / 10)
        self.adaptive_temporal = adaptive_temporal
        frequencies = torch.linspace(0, sr / 2, n_fft // 2 + 1)
        share = frequencies / (sr / 2)
        buffers = {
            "frequencies": frequencies,
            "spreading": _spreading(frequencies),
            "sensitivity": _absolute_threshold(frequencies)[:, None],
            "boost": (1 + (share - 0.5).clamp(min=0) * 2 * (high_freq_boost_db / 20))[:, None],
            "window": torch.hann_window(win or n_fft),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return noise for audio, with random phases: `snr_below_threshold_db` below the threshold."""
        with torch.autocast(x.device.type, enabled=False):
            thresholds, level = self._thresholds(x.float())
            noise = torch.stack([self._noise(threshold, level, x.shape[-1]) for threshold in thresholds], dim=1)
        return noise.to(x.dtype)

    @torch.no_grad()
    def calc_threshold(self, x: Tensor) -> Tensor:
        """Return the power that noise may have, (b, 2, bins, frames)."""
        with torch.autocast(x.device.type, enabled=False):
            thresholds, _ = self._thresholds(x.float())
        return torch.stack(thresholds, dim=1).to(x.dtype)

    def _thresholds(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the threshold of each channel, (b, bins, frames), and the mean power of the audio, (b, 1, 1)."""
        if x.shape[1] == 1:
            x = x.expand(-1, 2, -1)
        level = x.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=_FLOOR).square()
        spectra = [self._stft(channel) for channel in x[:, :2].unbind(1)]
        unmasking = self._unmasking(*spectra)
        thresholds = []
        for spectrum in spectra:
            threshold = self._simultaneous(spectrum, level) * unmasking
            thresholds.append(self._ring_on(threshold, spectrum))
        return thresholds, level

    def _stft(self, x: Tensor) -> Tensor:
        return torch.stft(x, self.n_fft, self.hop, win_length=len(self.window), window=self.window, return_complex=True)

    def _tonality(self, magnitude: Tensor) -> Tensor:
        """Return 1 for tones and 0 for noise: one minus the local spectral flatness, smoothed in time."""
        half = _FLATNESS_BINS // 2
        near = F.pad(magnitude.clamp(min=_FLOOR), (0, 0, half, half), mode="reflect").unfold(1, _FLATNESS_BINS, 1)
        flatness = (near + _FLOOR).log().mean(-1).exp() / (near.mean(-1) + _FLOOR)
        tonality = 1 - flatness.clamp(0, 1)
        if self.smoothing <= 0:
            return tonality
        frames = list(tonality.unbind(-1))
        for index in range(1, len(frames)):
            frames[index] = self.smoothing * frames[index - 1] + (1 - self.smoothing) * frames[index]
        return torch.stack(frames, dim=-1).clamp(0, 1)

    def _simultaneous(self, spectrum: Tensor, level: Tensor) -> Tensor:
        """Return what the bins of a frame mask in the same frame, at least the threshold of hearing."""
        magnitude = spectrum.abs()
        tonal, noisy = self.offsets_db
        tonality = self._tonality(magnitude)
        offset = 10 ** ((tonality * tonal + (1 - tonality) * noisy) / 10)
        masking = self.spreading @ (magnitude.square().clamp(min=_FLOOR) * offset)
        return torch.maximum(masking, self.sensitivity * level * 0.01) * self.boost

    def _unmasking(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the factor by which a channel that is silent where the other is not lowers the threshold."""
        if not self.unmasking_db:
            return torch.ones_like(left.real)
        powers = [channel.abs().square().clamp(min=_FLOOR) for channel in (left, right)]
        coherence = ((left * right.conj()).abs() / (powers[0] * powers[1]).sqrt()).clamp(0, 1)
        decibels = self.unmasking_db * (1 - coherence) * torch.exp(-self.frequencies / _BINAURAL_CORNER)[:, None]
        return 10 ** (-decibels / 10)

    def _ring_on(self, threshold: Tensor, spectrum: Tensor) -> Tensor:
        """Let the threshold fall no faster than masking does in time; faster after a sudden change of energy."""
        slow = math.exp(-1 / max(1.0, self.ringing_frames))
        fast = math.exp(-1 / max(1.0, self.ringing_frames * _FASTER))
        energy = spectrum.abs().square().mean(dim=1, keepdim=True)
        frames = list(threshold.unbind(-1))
        for index in range(1, len(frames)):
            decay: Tensor | float = slow
            if self.adaptive_temporal:
                before = energy[..., index - 1]
                changed = (energy[..., index] - before).abs() > 0.5 * before
                decay = torch.where(changed, fast, slow)
            frames[index] = torch.maximum(frames[index], frames[index - 1] * decay)
        return torch.stack(frames, dim=-1)

    def _noise(self, threshold: Tensor, level: Tensor, length: int) -> Tensor:
        power = torch.maximum(threshold / self.headroom, level * self.noise_floor)
        phase = torch.rand_like(power) * 2 * math.pi - math.pi
        spectrum = torch.polar(power.clamp(min=_FLOOR).sqrt(), phase)
        spectrum[:, [0, -1]] = 0  # nothing at zero and at half the sample rate
        return torch.istft(
            spectrum, self.n_fft, self.hop, win_length=len(self.window), window=self.window, length=length
        )
