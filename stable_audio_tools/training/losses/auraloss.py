"""Spectral and distortion losses, by the names and the numbers of auraloss (Steinmetz & Reiss 2020).

Every loss takes (input, target), both (b, c, n). Spectral convergence divides by the norm of the second.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import scipy.signal
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.generations import Generation, current_generation
from stable_audio_tools.models.transforms import tight_one_sided_complex_stft
from stable_audio_tools.training.losses.filters import FilterType, FIRFilter, chroma_bands, mel_bands
from stable_audio_tools.training.losses.formulas import CONTRAST_FLOOR, FORMULAS, cepstra, contrast

Reduction = Literal["none", "mean", "sum"]
Distance = Literal["L1", "L2"]
Scale = Literal["mel", "chroma"]
Output = Literal["loss", "full"]
Weight = float  # of one term; 0 leaves it out

_HANN = "hann_window"
_DISTANCES: dict[str, Callable[..., Tensor]] = {"L1": F.l1_loss, "L2": F.mse_loss}


def get_window(name: str, length: int) -> Tensor:
    """A window by torch's name for it (`hann_window`) or by SciPy's (`hann`)."""
    if name.endswith("_window") and hasattr(torch, name):
        window: Tensor = getattr(torch, name)(length)
        return window
    try:
        values = scipy.signal.get_window(name, length)
    except ValueError as error:
        raise ValueError(f"no window named {name!r} in torch or scipy.signal: {error}") from None
    return torch.tensor(values.tolist())


def _reduce(values: Tensor, reduction: Reduction, keep_items: bool = False) -> Tensor:
    dim = (-1, -2) if keep_items and values.ndim == 3 else None
    if reduction == "mean":
        return values.mean(dim=dim)
    return values.sum(dim=dim) if reduction == "sum" else values


def _version(version: Generation | None) -> Generation:
    return version or current_generation()


class Terms(NamedTuple):
    """The terms of an STFT loss; a term of weight zero is the number zero."""

    loss: Tensor
    convergence: Tensor | float
    log_magnitude: Tensor | float
    linear_magnitude: Tensor | float
    phase: Tensor | float


class SpectralConvergenceLoss(nn.Module):
    """Distance of magnitudes (..., bins, frames), relative to the norm of the second: (..., 1, 1).

    In 0.0.20 relative to the norm of the sum, at least `eps`.
    """

    def __init__(self, eps: float = CONTRAST_FLOOR) -> None:
        super().__init__()
        self.eps = eps
        self.formulas = FORMULAS[_version(None)]

    def forward(self, x_mag: Tensor, y_mag: Tensor) -> Tensor:
        return self.formulas.convergence(x_mag, y_mag, self.eps)


class SpectralContrastLoss(nn.Module):
    """Distance of magnitudes (..., bins, frames), relative to the norm of their sum: (..., 1, 1)."""

    def __init__(self, eps: float = CONTRAST_FLOOR) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_mag: Tensor, y_mag: Tensor) -> Tensor:
        return contrast(x_mag, y_mag, self.eps)


class CepstralLoss(nn.Module):
    """Mean absolute difference of the cepstra of two complex spectra (..., bins, frames)."""

    def __init__(self, log_eps: float = 0.0, log_fac: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.log_eps, self.log_fac, self.reduction = log_eps, log_fac, reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(*cepstra(x, y, self.log_fac, self.log_eps), reduction=self.reduction)


class STFTMagnitudeLoss(nn.Module):
    """Distance of magnitudes, or with `log` of log(log_fac * magnitude + log_eps).

    In 0.0.20 of log(1 + magnitude / deviation).
    """

    def __init__(
        self,
        log: bool = True,
        log_eps: float = 0.0,
        log_fac: float = 1.0,
        distance: Distance = "L1",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if distance not in _DISTANCES:
            raise ValueError(f"distance is {distance!r}; allowed: {', '.join(_DISTANCES)}")
        self.log = log
        self.log_eps = log_eps
        self.log_fac = log_fac
        self.distance = distance
        self.reduction = reduction
        self.formulas = FORMULAS[_version(None)]

    def forward(self, x_mag: Tensor, y_mag: Tensor) -> Tensor:
        if self.log:
            x_mag, y_mag = self.formulas.logarithms(x_mag, y_mag, self.log_fac, self.log_eps)
        return _DISTANCES[self.distance](x_mag, y_mag, reduction=self.reduction)


class STFTLoss(nn.Module):
    """Distance of the spectra of one resolution.

    `version` is the generation whose formulas hold; if omitted, that of the surrounding `generation(...)` block. With
    `residual_loss`, the spectrum of the difference is compared with silence.
    """

    window: Tensor
    fb: Tensor

    def __init__(
        self,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: str = _HANN,
        w_sc: Weight = 1.0,
        w_log_mag: Weight = 1.0,
        w_lin_mag: Weight = 0.0,
        w_phs: Weight = 0.0,
        sample_rate: float | None = None,
        scale: Scale | None = None,
        n_bins: int | None = None,
        perceptual_weighting: bool = False,
        scale_invariance: bool = False,
        eps: float = 1e-8,
        output: Output = "loss",
        reduction: Reduction = "mean",
        mag_distance: Distance = "L1",
        device: torch.device | str | None = None,
        retain_batch_dim: bool = False,
        log_eps: float = 0.0,
        log_fac: float = 1.0,
        w_cep: Weight = 0.0,
        residual_loss: bool = False,
        version: Generation | None = None,
    ) -> None:
        super().__init__()
        if not any((w_sc, w_log_mag, w_lin_mag, w_phs, w_cep)):
            raise ValueError("an STFT loss needs a weight: w_sc, w_log_mag, w_lin_mag, w_phs and w_cep are all zero")
        if mag_distance not in _DISTANCES:
            raise ValueError(f"mag_distance must be L1 or L2, got {mag_distance!r}")
        if (perceptual_weighting or scale) and sample_rate is None:
            raise ValueError("sample_rate is needed for perceptual_weighting and for scale")
        self.fft_size, self.hop_size, self.win_length = fft_size, hop_size, win_length
        self.w_sc, self.w_log_mag, self.w_lin_mag, self.w_phs = w_sc, w_log_mag, w_lin_mag, w_phs
        self.w_cep, self.residual_loss = w_cep, residual_loss
        self.version = _version(version)
        self.formulas = FORMULAS[self.version]
        self.log_eps, self.log_fac, self.eps = log_eps, log_fac, eps
        self.scale = scale
        self.scale_invariance = scale_invariance
        self.output = output
        self.reduction = reduction
        self.distance = _DISTANCES[mag_distance]
        self.retain_batch_dim = retain_batch_dim
        self.register_buffer("window", get_window(window, win_length), persistent=False)
        if scale is not None:
            assert sample_rate is not None
            self.register_buffer("fb", _filterbank(scale, int(sample_rate), fft_size, n_bins)[None].to(device))
        self.prefilter: FIRFilter | None = None
        if perceptual_weighting and sample_rate:
            weighting: FilterType = "aw" if self.version == "0.0.19" else "kw"
            self.prefilter = FIRFilter(weighting, fs=sample_rate, version=self.version)

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """The loss, or with `output="full"` the tuple of it and its terms."""
        terms = self.compare(self.spectrum(self.weigh(input)), self.spectrum(self.weigh(target)))
        return terms.loss if self.output == "loss" else tuple(terms)

    def weigh(self, x: Tensor) -> Tensor:
        """Apply the perceptual filter, if `perceptual_weighting` is set."""
        return x if self.prefilter is None else self.prefilter(x)

    def spectrum(self, x: Tensor) -> Tensor:
        """(b, c, n) -> complex (b * c, bins, frames)"""
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if self.version != "0.0.19":
            return tight_one_sided_complex_stft(x.float().flatten(0, 1), self.fft_size, self.hop_size)
        window = self.window.to(x)
        return torch.stft(
            x.flatten(0, 1), self.fft_size, self.hop_size, self.win_length, window=window, return_complex=True
        )

    def compare(self, x: Tensor, y: Tensor) -> Terms:
        """The terms from the complex spectra of input and target."""
        if self.residual_loss:
            x, y = y - x, torch.zeros_like(y)
        x_mag, y_mag = self._magnitude(x), self._magnitude(y)
        if self.scale_invariance:
            gain = (x_mag * y_mag).sum((-2, -1), keepdim=True) / y_mag.square().sum((-2, -1), keepdim=True)
            y_mag = y_mag * gain
        distance = "none" if self.retain_batch_dim else self.reduction
        convergence: Tensor | float = 0.0
        log_magnitude: Tensor | float = 0.0
        linear: Tensor | float = 0.0
        phase: Tensor | float = 0.0
        if self.w_sc:
            convergence = self.formulas.convergence(x_mag, y_mag, CONTRAST_FLOOR)
        if self.w_log_mag:
            logarithms = self.formulas.logarithms(x_mag, y_mag, self.log_fac, self.log_eps)
            log_magnitude = self.distance(*logarithms, reduction=distance)
        if self.w_lin_mag:
            linear = self.distance(x_mag, y_mag, reduction=distance)
        if self.w_phs:
            phase = self.formulas.phase(x, y)
        total = self.w_sc * convergence + self.w_log_mag * log_magnitude + self.w_lin_mag * linear + self.w_phs * phase
        if self.w_cep:
            total = total + self.w_cep * F.l1_loss(*cepstra(x, y, 1.0, 1e-6), reduction=distance)
        assert isinstance(total, Tensor)
        return Terms(_reduce(total, self.reduction, self.retain_batch_dim), convergence, log_magnitude, linear, phase)

    def _magnitude(self, spectrum: Tensor) -> Tensor:
        if self.version == "0.0.19":
            # A floor below the root: its gradient at zero is infinite.
            magnitude = (spectrum.real.square() + spectrum.imag.square()).clamp(min=self.eps).sqrt()
        else:
            magnitude = spectrum.abs().clamp(min=self.eps)
        return magnitude if self.scale is None else self.fb.to(magnitude) @ magnitude


def _filterbank(scale: Scale, sample_rate: int, fft_size: int, n_bins: int | None) -> Tensor:
    if scale == "chroma":
        return chroma_bands(sample_rate, fft_size, n_bins or 12)
    if scale != "mel":
        raise ValueError(f"scale must be mel or chroma, got {scale!r}")
    if n_bins is None or n_bins > fft_size // 2 + 1:
        raise ValueError(f"scale 'mel' needs n_bins, at most {fft_size // 2 + 1} for fft_size {fft_size}; got {n_bins}")
    return mel_bands(sample_rate, fft_size, n_bins)


class MelSTFTLoss(STFTLoss):
    """STFT loss over mel bands."""

    def __init__(
        self,
        sample_rate: float,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: str = _HANN,
        w_sc: Weight = 1.0,
        w_log_mag: Weight = 1.0,
        w_lin_mag: Weight = 0.0,
        w_phs: Weight = 0.0,
        n_mels: int = 128,
        **options: Any,
    ) -> None:
        weights = (w_sc, w_log_mag, w_lin_mag, w_phs)
        super().__init__(fft_size, hop_size, win_length, window, *weights, sample_rate, "mel", n_mels, **options)


class MultiResolutionSTFTLoss(nn.Module):
    """The mean of STFT losses at several resolutions (Yamamoto et al. 2020)."""

    def __init__(
        self,
        fft_sizes: Sequence[int] = (1024, 2048, 512),
        hop_sizes: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
        window: str = _HANN,
        w_sc: Weight = 1.0,
        w_log_mag: Weight = 1.0,
        w_lin_mag: Weight = 0.0,
        w_phs: Weight = 0.0,
        sample_rate: float | None = None,
        scale: Scale | None = None,
        n_bins: Sequence[int] | int | None = None,
        perceptual_weighting: bool = False,
        scale_invariance: bool = False,
        **options: Any,
    ) -> None:
        """`n_bins` is one number for all resolutions, or one for each; `options` go to every `STFTLoss`."""
        super().__init__()
        counts = len(fft_sizes), len(hop_sizes), len(win_lengths)
        if len(set(counts)) > 1 or counts[0] == 0:
            raise ValueError(f"fft_sizes, hop_sizes and win_lengths must be of one length, got {counts}")
        bins = [n_bins] * counts[0] if n_bins is None or isinstance(n_bins, int) else list(n_bins)
        if len(bins) != counts[0]:
            raise ValueError(f"n_bins has {len(bins)} entries for {counts[0]} resolutions")
        common: dict[str, Any] = {
            "w_sc": w_sc,
            "w_log_mag": w_log_mag,
            "w_lin_mag": w_lin_mag,
            "w_phs": w_phs,
            "window": window,
            "sample_rate": sample_rate,
            "scale": scale,
            "scale_invariance": scale_invariance,
            "perceptual_weighting": perceptual_weighting,
            **options,
        }
        self.stft_losses = nn.ModuleList(
            STFTLoss(fft_size, hop_size, win_length, n_bins=count, **common)
            for fft_size, hop_size, win_length, count in zip(fft_sizes, hop_sizes, win_lengths, bins)
        )

    @property
    def resolutions(self) -> list[STFTLoss]:
        return list(self.stft_losses)  # type: ignore[arg-type]

    def weigh(self, x: Tensor) -> Tensor:
        """The filter is the same at every resolution, so it is applied once."""
        return self.resolutions[0].weigh(x)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """The loss, or with `output="full"` the tuple of it and lists of its terms, one entry a resolution."""
        x, y = self.weigh(x), self.weigh(y)
        terms = [loss.compare(loss.spectrum(x), loss.spectrum(y)) for loss in self.resolutions]
        mean = torch.stack([term.loss for term in terms]).sum(dim=0) / len(terms)
        if self.resolutions[0].output == "loss":
            return mean
        return (mean, *([term[index] for term in terms] for index in range(1, len(Terms._fields))))


class StereoTerms(NamedTuple):
    """Losses of the four views of a stereo pair."""

    sum: Tensor
    difference: Tensor
    left: Tensor
    right: Tensor


def stereo_terms(loss: MultiResolutionSTFTLoss, input: Tensor, target: Tensor) -> StereoTerms:
    """All four views of (b, 2, n) from one transform of each channel: sums of signals have sums of spectra."""
    _check_stereo(input, target)
    input, target = loss.weigh(input), loss.weigh(target)
    views: list[list[Tensor]] = []
    for one in loss.resolutions:
        x, y = (one.spectrum(signal).unflatten(0, (-1, 2)).unbind(1) for signal in (input, target))
        pairs = ((x[0] + x[1], y[0] + y[1]), (x[0] - x[1], y[0] - y[1]), (x[0], y[0]), (x[1], y[1]))
        views.append([one.compare(*pair).loss for pair in pairs])
    return StereoTerms(*(torch.stack(values).sum(dim=0) / len(views) for values in zip(*views)))


def _check_stereo(*signals: Tensor) -> None:
    for signal in signals:
        if signal.shape[1] != 2:
            raise ValueError(f"the sum and difference of stereo audio were asked for, got {signal.shape[1]} channels")
    if signals[0].shape != signals[1].shape:
        raise ValueError(f"input is {tuple(signals[0].shape)} and target {tuple(signals[1].shape)}")


class SumAndDifferenceSTFTLoss(nn.Module):
    """Multi-resolution STFT loss of the sum and of the difference of stereo channels (Steinmetz et al. 2020)."""

    def __init__(
        self,
        fft_sizes: Sequence[int],
        hop_sizes: Sequence[int],
        win_lengths: Sequence[int],
        window: str = _HANN,
        w_sum: Weight = 1.0,
        w_diff: Weight = 1.0,
        output: Output = "loss",
        **options: Any,
    ) -> None:
        super().__init__()
        self.w_sum, self.w_diff, self.output = w_sum, w_diff, output
        self.mrstft = MultiResolutionSTFTLoss(fft_sizes, hop_sizes, win_lengths, window, **options)

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """The loss, or with `output="full"` the tuple of it and the losses of sum and difference."""
        _check_stereo(input, target)
        x_sum, x_difference, y_sum, y_difference = (
            view for signal in (input, target) for view in (signal.sum(1, keepdim=True), signal[:, :1] - signal[:, 1:])
        )
        of_sum, of_difference = self.mrstft(x_sum, y_sum), self.mrstft(x_difference, y_difference)
        loss = (self.w_sum * of_sum + self.w_diff * of_difference) / 2
        return loss if self.output == "loss" else (loss, of_sum, of_difference)


def _distortion_ratio(
    input: Tensor, target: Tensor, zero_mean: bool, eps: float, reduction: Reduction, scale_invariant: bool
) -> Tensor:
    """Minus the ratio in decibels of the target, scaled to fit the input, to what is left of the input."""
    if zero_mean:
        input = input - input.mean(dim=-1, keepdim=True)
        target = target - target.mean(dim=-1, keepdim=True)
    gain = (input * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + eps)
    scaled = gain * target
    residual = input - (scaled if scale_invariant else target)
    ratio = scaled.square().sum(-1) / (residual.square().sum(-1) + eps) + eps
    return -_reduce(10 * torch.log10(ratio), reduction)


class SISDRLoss(nn.Module):
    """Minus the scale-invariant signal-to-distortion ratio, in decibels (Le Roux et al. 2019)."""

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.zero_mean, self.eps, self.reduction = zero_mean, eps, reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _distortion_ratio(input, target, self.zero_mean, self.eps, self.reduction, scale_invariant=True)


class SDSDRLoss(nn.Module):
    """Minus the scale-dependent signal-to-distortion ratio, in decibels (Le Roux et al. 2019)."""

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.zero_mean, self.eps, self.reduction = zero_mean, eps, reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _distortion_ratio(input, target, self.zero_mean, self.eps, self.reduction, scale_invariant=False)


def apply_reduction(losses: Tensor, reduction: Reduction = "none") -> Tensor:
    """Return the mean or the sum of losses, or the losses themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


class SumAndDifference(nn.Module):
    """Stereo audio (b, 2, n) to the sum and the difference of its channels, (b, 1, n) each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] != 2:
            raise ValueError(f"expected stereo audio of shape (b, 2, n), got {tuple(x.shape)}")
        left, right = x[:, :1], x[:, 1:]
        return left + right, left - right
