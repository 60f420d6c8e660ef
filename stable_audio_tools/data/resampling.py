"""Sample-rate conversion by windowed sinc, of whole audio or of a span of the output.

The filter is the Hann-windowed sinc that torchaudio uses by default (6 zero crossings, cut-off at 0.99 of the lower
Nyquist frequency), so that the numbers agree. Filters are cached, and a span of the output reads only the span of the
input that its filter covers: a crop of the resampled file costs a crop of the file.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99
_LARGEST_BANK = 1 << 22  # weights; beyond this one filter per output phase is applied by gathering


class _Ratio(NamedTuple):
    """A reduced ratio of rates, `old` to `new`; the filter reaches `width` input samples to each side."""

    old: int
    new: int
    width: int

    @property
    def bank(self) -> int:
        return self.new * (self.old + 2 * self.width)


def _ratio(old_rate: int, new_rate: int) -> _Ratio:
    common = math.gcd(old_rate, new_rate)
    old, new = old_rate // common, new_rate // common
    return _Ratio(old, new, math.ceil(_ZERO_CROSSINGS * old / (min(old, new) * _ROLLOFF)))


def resampled_length(samples: int, old_rate: int, new_rate: int) -> int:
    """Return the number of output samples of a whole resample."""
    if old_rate <= 0 or new_rate <= 0:
        raise ValueError(f"sample rates must be positive, got {old_rate} and {new_rate}")
    return -(-samples * new_rate // old_rate)


def input_span(first: int, samples: int, old_rate: int, new_rate: int) -> tuple[int, int]:
    """Return the input samples [start, stop) that output samples [first, first + samples) depend on, unclamped."""
    if old_rate == new_rate:
        return first, first + samples
    ratio = _ratio(old_rate, new_rate)
    last_block = (first + max(samples, 1) - 1) // ratio.new
    return first // ratio.new * ratio.old - ratio.width, (last_block + 1) * ratio.old + ratio.width


def resample(audio: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Resample `(..., n)` at `old_rate` to `(..., ceil(n * new / old))` at `new_rate`."""
    return resample_span(audio, 0, 0, resampled_length(audio.shape[-1], old_rate, new_rate), old_rate, new_rate)


def resample_span(audio: Tensor, offset: int, first: int, samples: int, old_rate: int, new_rate: int) -> Tensor:
    """Return output samples [first, first + samples); `audio[..., 0]` is input sample `offset`, the rest is silence."""
    start, stop = input_span(first, samples, old_rate, new_rate)
    before, after = offset - start, stop - offset - audio.shape[-1]
    audio = F.pad(audio, (before, after))  # negative widths cut
    if old_rate == new_rate or samples == 0:
        return audio[..., :samples]
    ratio = _ratio(old_rate, new_rate)
    work = audio.dtype if audio.dtype in (torch.float32, torch.float64) else torch.float32
    flat = audio.to(work).reshape(-1, 1, audio.shape[-1])
    skip = first % ratio.new
    if ratio.bank <= _LARGEST_BANK:
        blocks = F.conv1d(flat, _filter_bank(ratio, work, audio.device), stride=ratio.old)  # (rows, new, blocks)
        out = blocks.transpose(1, 2).reshape(len(flat), -1)[:, skip : skip + samples]
    else:
        out = _gather(flat[:, 0], ratio, skip, samples)
    return out.reshape(*audio.shape[:-1], samples).to(audio.dtype)


@lru_cache(maxsize=32)
def _filter_bank(ratio: _Ratio, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        place = torch.arange(-ratio.width, ratio.old + ratio.width, dtype=torch.float64)
        phase = torch.arange(ratio.new, dtype=torch.float64)[:, None] * ratio.old / ratio.new
        return _windowed_sinc(place - phase, ratio)[:, None].to(device=device, dtype=dtype)


@lru_cache(maxsize=4)
def _phase_filters(ratio: _Ratio) -> Tensor:
    with torch.inference_mode(False):
        taps = torch.arange(-ratio.width, ratio.width + 2, dtype=torch.float64)
        fraction = (torch.arange(ratio.new) * ratio.old % ratio.new).double() / ratio.new
        return _windowed_sinc(taps - fraction[:, None], ratio).float()


def _windowed_sinc(distance: Tensor, ratio: _Ratio) -> Tensor:
    """Return the filter value at a distance in input samples."""
    cutoff = min(ratio.old, ratio.new) * _ROLLOFF / ratio.old
    crossings = (distance * cutoff).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = torch.cos(crossings * (math.pi / (2 * _ZERO_CROSSINGS))) ** 2
    return torch.sinc(crossings) * window * cutoff


def _gather(rows: Tensor, ratio: _Ratio, skip: int, samples: int, chunk: int = 1 << 14) -> Tensor:
    """Return the same sum for rates with a large reduced ratio, such as 44,099 and 44,100 Hz."""
    filters = _phase_filters(ratio).to(rows)
    taps = torch.arange(filters.shape[1], device=rows.device)
    rows = F.pad(rows, (0, 2))
    pieces = []
    for start in range(skip, skip + samples, chunk):
        output = torch.arange(start, min(start + chunk, skip + samples), device=rows.device)
        place = output * ratio.old // ratio.new  # the block's first input sample is at index `width`
        pieces.append((rows[:, place[:, None] + taps] * filters[output % ratio.new]).sum(-1))
    return torch.cat(pieces, dim=1)
