"""Spectra and filter banks that some critics see audio through. They have no JSON tag."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.transforms import CosineModulatedFilterBank, alternating_signs, one_sided_weights

_HALF = math.sqrt(0.5)


class ComplexSTFTPretransform(Pretransform):
    """Complex spectrum with half overlap: real and imaginary part of each bin side by side as channels.

    In training, `psd` and `s2a` follow the mean power of the bins. `ema_flatten` divides by a power of it,
    `use_compander` then compresses magnitudes. `decode` inverts both; it returns as many samples as the last `encode`
    took unless `length` is given. `gl_correction_steps` are steps of Griffin & Lim's algorithm in `decode`.
    """

    window: Tensor
    weights: Tensor
    psd: Tensor
    s2a: Tensor

    def __init__(
        self,
        channels: int,
        n_fft: int = 1024,
        demodulate: bool = True,
        center: bool = False,
        value_norm: Literal["tight", "none"] = "tight",
        use_mid_side: bool = False,
        ema_flatten: bool = True,
        flatten_alpha: float = 0.5,
        ema_beta: float = 1e-4,
        w_min: float = 0.25,
        w_max: float = 4.0,
        use_compander: bool = True,
        comp_alpha: float = 0.9,
        beta_min: float = 0.25,
        beta_max: float = 4.0,
        eps: float = 1e-12,
        enable_grad: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        gl_correction_steps: int = 0,
        freeze_stats: bool = False,
    ) -> None:
        super().__init__(enable_grad=enable_grad, io_channels=channels, is_discrete=False)
        if value_norm not in ("tight", "none"):
            raise ValueError(f"value_norm must be 'tight' or 'none', got {value_norm!r}")
        self.n_fft, self.center, self.demodulate = n_fft, center, demodulate
        self.use_mid_side = use_mid_side and channels == 2
        self.ema_flatten, self.flatten_alpha, self.flatten_range = ema_flatten, flatten_alpha, (w_min, w_max)
        self.use_compander, self.comp_alpha, self.compander_range = use_compander, comp_alpha, (beta_min, beta_max)
        self.ema_beta, self.eps, self.freeze_stats = ema_beta, eps, freeze_stats
        self.gl_correction_steps = max(0, gl_correction_steps)
        bins = n_fft // 2 + 1
        self.downsampling_ratio = n_fft // 2
        self.encoded_channels = channels * 2 * bins
        window = torch.sin(math.pi * (torch.arange(n_fft, dtype=dtype, device=device) + 0.5) / n_fft)
        weights = one_sided_weights(n_fft) if value_norm == "tight" else torch.ones(bins)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("weights", weights[:, None].to(window), persistent=False)
        for name in ("psd", "s2a"):
            self.register_buffer(name, torch.ones(1, 1, bins, 1, device=device))
        self._last_length: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def encode(self, x: Tensor, **kwargs: Any) -> Tensor:  # (b, c, n) -> (b, 2 * c * bins, frames)
        if x.shape[1] != self.io_channels:
            raise ValueError(f"audio has {x.shape[1]} channels, and this transform takes {self.io_channels}")
        x = self._swap_sides(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
        self._last_length = x.shape[-1]
        spectrum = self._turn(self._stft(x)) * self.weights
        if self.ema_flatten:
            self._follow(self.psd, spectrum, power=2.0)
            spectrum = spectrum * self._flattening()
        if self.use_compander:
            self._follow(self.s2a, spectrum, power=2 * self.comp_alpha)
            magnitude = spectrum.abs()
            spectrum = self._gain() * magnitude.pow(self.comp_alpha) * self._phase(spectrum, magnitude)
        return torch.view_as_real(spectrum).permute(0, 1, 2, 4, 3).flatten(1, 3)

    def decode(self, z: Tensor, length: int | None = None, **kwargs: Any) -> Tensor:  # (b, d, t) -> (b, c, n)
        length = length if length is not None else self._last_length
        if length is None:
            raise ValueError("the length of the audio is not known; pass length, or encode audio first")
        z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
        parts = z.unflatten(1, (self.io_channels, -1, 2))
        spectrum = torch.complex(parts[:, :, :, 0], parts[:, :, :, 1])
        if self.use_compander:
            magnitude = spectrum.abs()
            restored = (magnitude / self._gain()).pow(1 / self.comp_alpha)
            spectrum = restored * self._phase(spectrum, magnitude)
        if self.ema_flatten:
            spectrum = spectrum / self._flattening()
        spectrum = self._turn(spectrum / self.weights)
        magnitude = spectrum.abs()
        samples = (spectrum.shape[-1] - 1) * self.downsampling_ratio + (0 if self.center else self.n_fft)
        for _ in range(self.gl_correction_steps):
            phase = spectrum / spectrum.abs().clamp(min=self.eps)
            spectrum = self._stft(self._istft(magnitude * phase, samples))
        return self._swap_sides(self._istft(spectrum, length))

    def _swap_sides(self, x: Tensor) -> Tensor:
        """Left and right to middle and side, which is its own inverse."""
        if not self.use_mid_side:
            return x
        left, right = x.unbind(1)
        return torch.stack([left + right, left - right], dim=1) * _HALF

    def _stft(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(
            x.flatten(0, 1),
            self.n_fft,
            self.downsampling_ratio,
            window=self.window,
            center=self.center,
            normalized=True,
            return_complex=True,
        )
        return spectrum.unflatten(0, x.shape[:2])

    def _istft(self, spectrum: Tensor, length: int) -> Tensor:
        audio = torch.istft(
            spectrum.flatten(0, 1),
            self.n_fft,
            self.downsampling_ratio,
            window=self.window,
            center=self.center,
            normalized=True,
            length=length,
        )
        return audio.unflatten(0, spectrum.shape[:2])

    def _turn(self, spectrum: Tensor) -> Tensor:
        if not self.demodulate:
            return spectrum
        return spectrum * alternating_signs(spectrum.shape[-2], spectrum.shape[-1], spectrum.real)

    def _follow(self, statistic: Tensor, spectrum: Tensor, power: float) -> None:
        """Move a running mean over bins towards this batch."""
        if self.training and not self.freeze_stats:
            mean = spectrum.detach().abs().float().pow(power).mean(dim=(0, 1, 3), keepdim=True)
            statistic.lerp_(mean, self.ema_beta)

    def _flattening(self) -> Tensor:
        if self.flatten_alpha == 0:
            return torch.ones_like(self.psd)
        return (self.psd + self.eps).pow(-0.5 * self.flatten_alpha).clamp(*self.flatten_range)

    def _gain(self) -> Tensor:
        return (self.s2a + self.eps).rsqrt().clamp(*self.compander_range)

    def _phase(self, spectrum: Tensor, magnitude: Tensor) -> Tensor:
        """Return the spectrum with magnitude one, and zero where it is zero."""
        return torch.where(magnitude > 0, spectrum / magnitude.clamp(min=self.eps), 0)


class HILPQMFPretransform(Pretransform):
    """Bands of a cosine-modulated filter bank, of each channel by itself."""

    def __init__(self, channels: int, subbands: int, taps: int, beta: float, cutoff_freq: float) -> None:
        super().__init__(enable_grad=False, io_channels=channels, is_discrete=False)
        self.encoded_channels = channels * subbands
        self.downsampling_ratio = subbands
        self.pqmf = CosineModulatedFilterBank(subbands, taps, cutoff_freq, beta)

    def encode(self, x: Tensor, **kwargs: Any) -> Tensor:  # (b, c, n) -> (b, c * bands, t)
        return self.pqmf.analysis(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1, 2)

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:  # (b, c * bands, t) -> (b, c, n)
        bands = z.unflatten(1, (self.io_channels, -1))
        return self.pqmf.synthesis(bands.flatten(0, 1)).squeeze(1).unflatten(0, bands.shape[:2])
