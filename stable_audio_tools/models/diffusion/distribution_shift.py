"""Distribution shifts: monotone maps of times (0 is data, 1 is noise) that depend on the length of the sequence.

`shift(t, length)` takes one length, or a length per item. Lengths of as many items as there are times belong to the
times one by one; of any other number of items, each item gets a row of times: (items, times).
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from stable_audio_tools.core.config.sentences import nearest


class Shift(Protocol):
    """A map of times for a sequence of so many latent frames."""

    def shift(self, t: Tensor, seq_len: int | Tensor) -> Tensor: ...


class IdentityDistributionShift:
    """Times as they are."""

    def shift(self, t: Tensor, seq_len: int | Tensor) -> Tensor:
        return t


class FluxDistributionShift:
    """alpha t / (1 + (alpha - 1) t), with alpha interpolated between two lengths on log scales (Esser et al. 2024)."""

    def __init__(
        self,
        min_length: float = 256,
        max_length: float = 4096,
        alpha_min: float = 1.0,
        alpha_max: float = 1.0,
    ) -> None:
        _check_lengths(min_length, max_length)
        for name, alpha in (("alpha_min", alpha_min), ("alpha_max", alpha_max)):
            if alpha <= 0:
                raise ValueError(f"{name} is {alpha:g}; it must be above 0 (1 leaves times as they are)")
        self.min_length, self.max_length = min_length, max_length
        self.alpha_min, self.alpha_max = alpha_min, alpha_max

    def shift(self, t: Tensor, seq_len: int | Tensor) -> Tensor:
        t, length = _paired(t, seq_len)
        lengths = torch.tensor([self.min_length, self.max_length], dtype=length.dtype).log()
        share = (length.clamp(self.min_length, self.max_length).log() - lengths[0]) / (lengths[1] - lengths[0])
        low, high = math.log(self.alpha_min), math.log(self.alpha_max)
        alpha = torch.exp(low + share * (high - low)).to(t)
        return alpha * t / (1 + (alpha - 1) * t)


class DistributionShift:
    """A shift of times towards noise that grows with the length of the sequence (Esser et al. 2024, section 5.3.2)."""

    def __init__(
        self,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        max_length: float = 4096,
        min_length: float = 256,
        use_sine: bool = False,
    ) -> None:
        _check_lengths(min_length, max_length)
        self.base_shift = base_shift
        self.max_shift = max_shift
        self.max_length = max_length
        self.min_length = min_length
        self.use_sine = use_sine

    def time_shift(self, t: Tensor, seq_len: int) -> Tensor:
        """Times in [0, 1] for a sequence of `seq_len` latent frames; 0 and 1 stay where they are."""
        length = min(max(seq_len, self.min_length), self.max_length)
        share = (length - self.min_length) / (self.max_length - self.min_length)
        odds = math.exp(-(self.base_shift + (self.max_shift - self.base_shift) * share))
        return self._move(t, odds)

    def shift(self, t: Tensor, seq_len: int | Tensor) -> Tensor:
        if not isinstance(seq_len, Tensor):
            return self.time_shift(t, seq_len)
        t, length = _paired(t, seq_len)
        share = (length.clamp(self.min_length, self.max_length) - self.min_length) / (self.max_length - self.min_length)
        return self._move(t, torch.exp(-(self.base_shift + (self.max_shift - self.base_shift) * share)).to(t))

    def _move(self, t: Tensor, odds: float | Tensor) -> Tensor:
        shifted = 1 - odds / (odds + (1 / (1 - t) - 1))
        return torch.sin(shifted * (math.pi / 2)) if self.use_sine else shifted


class LogSNRShift:
    """Even steps in log-SNR, from `logsnr_end` at t = 0 to a bound that falls by `rate` per doubling of the length.

    0 and 1 stay where they are.
    """

    def __init__(
        self,
        anchor_length: float = 2000,
        anchor_logsnr: float = -6.2,
        rate: float = 1.0,
        logsnr_end: float = 2.0,
    ) -> None:
        if anchor_length <= 0:
            raise ValueError(f"anchor_length is {anchor_length:g}; it must be above 0")
        self.anchor_length = anchor_length
        self.anchor_logsnr = anchor_logsnr
        self.rate = rate
        self.logsnr_end = logsnr_end

    def shift(self, t: Tensor, seq_len: int | Tensor) -> Tensor:
        t, length = _paired(t, seq_len)
        first = (self.anchor_logsnr - self.rate * torch.log2(length / self.anchor_length)).to(t)
        moved = torch.sigmoid(t * (self.logsnr_end - first) - self.logsnr_end)
        return torch.where(t <= 0, torch.zeros_like(t), torch.where(t >= 1, torch.ones_like(t), moved))


SHIFTS: dict[str, Callable[..., Shift]] = {
    "none": IdentityDistributionShift,
    "flux": FluxDistributionShift,
    "full": DistributionShift,
    "logsnr": LogSNRShift,
}


def create_shift(options: Mapping[str, object]) -> Shift:
    """Create the shift of a config section from its `type` ("full" if left out) and the options of that type."""
    others = {key: value for key, value in options.items() if key != "type"}
    return SHIFTS[str(options.get("type", "full"))](**others)


def check_shift(options: Mapping[str, object] | None, path: str) -> Iterator[tuple[str, str]]:
    """Yield the mistakes of a config section, as (path, sentence)."""
    kind = (options or {}).get("type", "full")
    if kind not in SHIFTS:
        yield f"{path}.type", f"no distribution shift named {kind!r}; {nearest(str(kind), SHIFTS)}"
        return
    known = [] if kind == "none" else list(inspect.signature(SHIFTS[kind]).parameters)
    for key in options or {}:
        if key != "type" and key not in known:
            allowed = nearest(key, known) if known else "the type 'none' has no options"
            yield f"{path}.{key}", f"unknown key; {allowed}"


def _check_lengths(low: float, high: float) -> None:
    if high <= low:
        raise ValueError(f"max_length is {high}; it must be more than min_length, which is {low}")


def _paired(t: Tensor, seq_len: int | Tensor) -> tuple[Tensor, Tensor]:
    """Times and lengths, shaped so that they broadcast."""
    length = torch.as_tensor(seq_len, device=t.device).to(torch.promote_types(t.dtype, torch.float32))
    if length.ndim == 1 and t.ndim == 1 and len(length) != len(t):
        return t.expand(len(length), -1), length[:, None]
    return t, length


_LEAST = 1e-4  # keeps log-SNR finite


def sample_timesteps_logsnr(batch_size: int, mean_logsnr: float = -1.2, std_logsnr: float = 2.0) -> Tensor:
    """t whose log-SNR, log((1 - t) / t), is normal; kept away from 0 and 1."""
    return torch.sigmoid(-(mean_logsnr + std_logsnr * torch.randn(batch_size))).clamp(_LEAST, 1 - _LEAST)


def sample_timesteps_logsnr_uniform(batch_size: int, min_logsnr: float = -6.0, max_logsnr: float = 5.0) -> Tensor:
    """t whose log-SNR is uniform between two bounds; kept away from 0 and 1."""
    logsnr = min_logsnr + (max_logsnr - min_logsnr) * torch.rand(batch_size)
    return torch.sigmoid(-logsnr).clamp(_LEAST, 1 - _LEAST)


def truncated_logistic_normal_rescaled(
    shape: int | Sequence[int], left_trunc: float = 0.075, right_trunc: float = 1.0
) -> Tensor:
    """Logit-normal draws between two cuts, stretched so that the left cut is 0 and the right one 1.

    The normal is cut by its distribution function: u -> low + (high - low) u.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = (normal.cdf(torch.logit(torch.tensor(cut))) for cut in (left_trunc, right_trunc))
    inside = low + (high - low) * normal.cdf(torch.randn(shape))
    return (torch.sigmoid(normal.icdf(inside)) - left_trunc) / (right_trunc - left_trunc)
