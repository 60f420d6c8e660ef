"""Joining of two pieces of audio without an audible seam: level, alignment, cross-fade."""

import math

import torch
import torchaudio
from torch import Tensor

_SHORTEST_LOUDNESS = 0.4  # seconds; one block of ITU-R BS.1770
_MOST_GAIN = 12.0  # dB


def loudness_gain(reference: Tensor, audio: Tensor, sample_rate: int) -> float:
    """Return the factor that makes `audio` (c, n) as loud as `reference` (c, m), at most 12 dB either way.

    Loudness follows ITU-R BS.1770; below 0.4 s, where it is not defined, it is the mean square. Silence gives 1.
    """
    levels = [_level(clip, sample_rate) for clip in (reference, audio)]
    if not all(math.isfinite(level) for level in levels):
        return 1.0
    decibels = max(-_MOST_GAIN, min(_MOST_GAIN, levels[0] - levels[1]))
    return float(10 ** (decibels / 20))


def _level(audio: Tensor, sample_rate: int) -> float:
    mean_square = float(audio.float().square().mean())
    if mean_square <= 0:
        return -math.inf
    if audio.shape[-1] < _SHORTEST_LOUDNESS * sample_rate or len(audio) > 5:
        return 10 * math.log10(mean_square)
    return float(torchaudio.functional.loudness(audio.float().cpu(), sample_rate))


def best_lag(before: Tensor, after: Tensor, most: int) -> int:
    """Return the lag, up to `most` samples, at which `after` (c, n + 2 * most) is most like `before` (c, n)."""
    if most == 0:
        return 0
    windows = after.double().unfold(-1, before.shape[-1], 1)  # (c, lags, n)
    likeness = torch.einsum("cln,cn->l", windows, before.double())
    energy = windows.square().sum((0, 2)).sqrt()
    return int((likeness / energy.clamp(min=1e-9)).argmax()) - most


def splice(before: Tensor, after: Tensor, overlap: int, fade: int, search: int) -> Tensor:
    """Continue `before` (c, n) by `after` (c, m), whose first `overlap` samples repeat the last ones of `before`.

    They are cross-faded in the last `fade` samples of the overlap, where `after` is shifted by up to `search` samples
    to match `before`. The fade keeps the power for any similarity of the two.
    """
    fade = min(fade, overlap)
    search = max(0, min(search, overlap - fade, after.shape[-1] - overlap))
    start = overlap - fade
    if fade == 0:
        return torch.cat([before, after[:, overlap:]], dim=-1)
    old = before[:, before.shape[-1] - fade :]
    start += best_lag(old, after[:, start - search : overlap + search], search)
    new = after[:, start : start + fade]
    return torch.cat([before[:, : before.shape[-1] - fade], _blend(old, new), after[:, start + fade :]], dim=-1)


def _blend(old: Tensor, new: Tensor) -> Tensor:
    rise = (torch.arange(old.shape[-1], dtype=old.dtype, device=old.device) + 1) / (old.shape[-1] + 1)
    alike = torch.nn.functional.cosine_similarity(old.flatten(), new.flatten(), dim=0).clamp(0, 1)
    power = (1 - rise) ** 2 + rise**2 + 2 * alike * rise * (1 - rise)
    return (old * (1 - rise) + new * rise) / power.sqrt()
