"""Landmarks of a recording: peaks of its spectrum, and groups of four peaks as codes that survive changes.

Frequencies are on a logarithmic axis, so a change of pitch moves all peaks by the same number of bins, and a change of
speed scales all times by the same factor. The code of four peaks holds three intervals of pitch and two ratios of
times, which both changes leave alone, and two coarse values, the register of the first peak and the duration of the
group, which small changes leave alone. Fewer peaks would repeat everywhere: music has few intervals and rhythms.
"""

from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_RATE = 11_025
HOP = 256
FRAMES_PER_SECOND = SAMPLE_RATE / HOP
BINS_PER_OCTAVE = 36
NUM_BINS = 168  # 200 Hz to 5 kHz
_LOWEST = 200.0  # Hz
_WINDOW = 2_048
_FLOOR = 1e-4  # of the loudest bin
_NEAR_BINS, _NEAR_FRAMES = 6, 5  # a peak is the largest value within so many bins and frames
_PEAKS_PER_SECOND = 20

_FAN = 8  # later peaks that a peak forms groups with
_LOOKED_AT = 60  # later peaks among which those are searched
_WIDEST = 36  # bins between the first peak of a group and the others
_SHORTEST, _LONGEST = 8, 110  # frames between the first peak of a group and the others
_LEAST_STEP = 2  # frames between later peaks
_INTERVAL = 1.5  # bins per level
_INTERVALS = 2 * int(_WIDEST / _INTERVAL) + 2
_RATIOS = 10
_REGISTER = 18  # bins per level
_REGISTERS = NUM_BINS // _REGISTER + 1
_DURATIONS_PER_OCTAVE = 2
_DURATIONS = 8
_COUNTS = (_INTERVALS, _INTERVALS, _INTERVALS, _RATIOS, _RATIOS, _REGISTERS, _DURATIONS)

# Distances from the border of a level, in levels, within which the neighbouring level is looked up as well:
# a quarter bin of pitch, a semitone of register, 6 % of speed.
_SLACKS = (0.25, 0.25, 0.25, 0.25, 0.25, 3.3 / _REGISTER, 0.17)


class Peaks(NamedTuple):
    """Peaks of a recording in the order of time."""

    frame: NDArray[np.float32]  # (n,) at 43.07 frames per second
    pitch: NDArray[np.float32]  # (n,) in bins, 36 per octave above 200 Hz


class Landmarks(NamedTuple):
    """Codes of groups of four peaks, and what an alignment needs of them."""

    code: NDArray[np.uint32]
    frame: NDArray[np.float32]  # of the first peak
    pitch: NDArray[np.float32]  # of the first peak
    duration: NDArray[np.float32]  # frames from the first peak to the last


def find_peaks(audio: Tensor) -> Peaks:
    """Find the peaks of mono audio (n,) at 11,025 Hz, at most 20 per second."""
    window = torch.hann_window(_WINDOW)
    padded = F.pad(audio.float(), (_WINDOW // 2, _WINDOW))
    spectrum = torch.stft(padded, _WINDOW, HOP, window=window, center=False, return_complex=True).abs()
    loudest = spectrum.max()
    if loudest <= 0:
        return Peaks(np.empty(0, np.float32), np.empty(0, np.float32))
    levels = torch.log(_log_frequency_bank() @ (spectrum / loudest) + _FLOOR)  # (bins, frames)
    size, padding = (2 * _NEAR_BINS + 1, 2 * _NEAR_FRAMES + 1), (_NEAR_BINS, _NEAR_FRAMES)
    largest = F.max_pool2d(levels[None, None], size, 1, padding)[0, 0]
    around = F.avg_pool2d(levels[None, None], (25, 41), 1, (12, 20), count_include_pad=False)[0, 0]
    is_peak = (levels == largest) & (levels > levels.mean())
    is_peak[[0, 1, -2, -1]] = False
    is_peak[:, [0, -1]] = False
    bins, frames = torch.nonzero(is_peak, as_tuple=True)
    kept = _most_prominent((levels - around)[bins, frames], frames)
    bins, frames = bins[kept], frames[kept]
    pitch = bins + _vertex(levels[bins - 1, frames], levels[bins, frames], levels[bins + 1, frames])
    frame = frames + _vertex(levels[bins, frames - 1], levels[bins, frames], levels[bins, frames + 1])
    order = torch.argsort(frame, stable=True)
    return Peaks(frame[order].numpy(), pitch[order].numpy())


@cache
def _log_frequency_bank() -> Tensor:
    """Return triangular filters (bins, frequencies), as wide as a bin but at least as a line of the spectrum."""
    frequencies = np.arange(_WINDOW // 2 + 1) * SAMPLE_RATE / _WINDOW
    centres = _LOWEST * 2 ** (np.arange(NUM_BINS)[:, None] / BINS_PER_OCTAVE)
    widths = np.maximum(centres * (2 ** (1 / BINS_PER_OCTAVE) - 1), SAMPLE_RATE / _WINDOW)
    filters = np.maximum(0, 1 - np.abs(frequencies - centres) / widths)
    return torch.from_numpy(filters / filters.sum(1, keepdims=True)).float()


def _most_prominent(prominence: Tensor, frames: Tensor) -> Tensor:
    """Return the places of the most prominent peaks of every second."""
    seconds = (frames / FRAMES_PER_SECOND).long()
    order = torch.argsort(prominence, descending=True, stable=True)
    order = order[torch.argsort(seconds[order], stable=True)]
    rank = torch.arange(len(order)) - torch.searchsorted(seconds[order], seconds[order])
    return order[rank < _PEAKS_PER_SECOND]


def _vertex(before: Tensor, at: Tensor, after: Tensor) -> Tensor:
    """Return the place of a parabola's vertex relative to the middle of three values, within half a step."""
    bend = (before - 2 * at + after).clamp(max=-1e-6)
    return (0.5 * (before - after) / bend).clamp(-0.5, 0.5)


# ------------------------------------------------------------------ codes


def find_landmarks(peaks: Peaks, sampling: int) -> Landmarks:
    """Return one in `sampling` landmarks, chosen by their codes, so that two recordings keep the same ones."""
    values, first, duration = _measure(peaks)
    code = _join([value.astype(np.int64) for value in values])
    kept = is_sampled(code, sampling)
    first = first[kept]
    return Landmarks(code[kept], peaks.frame[first], peaks.pitch[first], duration[kept])


def find_probes(peaks: Peaks, sampling: int) -> Landmarks:
    """Return the landmarks of a query, each under its own code and under codes of neighbouring levels."""
    values, first, duration = _measure(peaks)
    rows, levels = np.arange(len(first)), [value.astype(np.int64) for value in values]
    for axis, (value, slack) in enumerate(zip(values, _SLACKS)):
        part = value - np.floor(value)
        neighbour = np.where(part < slack, -1, np.where(part > 1 - slack, 1, 0))[rows]
        also = np.flatnonzero(neighbour)
        shifted = [level[also] for level in levels]
        shifted[axis] = shifted[axis] + neighbour[also]
        levels = [np.concatenate([level, more]) for level, more in zip(levels, shifted)]
        rows = np.concatenate([rows, rows[also]])
    exists = np.all([(level >= 0) & (level < count) for level, count in zip(levels, _COUNTS)], axis=0)
    code = _join([level[exists] for level in levels])
    kept = is_sampled(code, sampling)
    rows = rows[exists][kept]
    return Landmarks(code[kept], peaks.frame[first[rows]], peaks.pitch[first[rows]], duration[rows])


def is_sampled(code: NDArray[np.uint32], sampling: int) -> NDArray[np.bool_]:
    """Return which codes an index with this sampling holds; the choice looks random and depends on the code alone."""
    mixed = (code.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    found: NDArray[np.bool_] = mixed % np.uint64(sampling) == 0
    return found


def _measure(peaks: Peaks) -> tuple[list[NDArray[np.float64]], NDArray[np.int64], NDArray[np.float32]]:
    """Return the seven values of every group in levels, its first peak, and its duration in frames."""
    frame, pitch, count = peaks.frame, peaks.pitch, len(peaks.frame)
    later = np.arange(count)[:, None] + np.arange(1, _LOOKED_AT)
    exists = later < count
    later = np.minimum(later, max(0, count - 1))
    delay = frame[later] - frame[:, None]
    exists &= (delay >= _SHORTEST) & (delay <= _LONGEST) & (np.abs(pitch[later] - pitch[:, None]) <= _WIDEST)
    rank = np.cumsum(exists, axis=1)
    rows, columns = np.nonzero(exists & (rank <= _FAN))
    fan = np.full((count, _FAN), -1, np.int64)
    fan[rows, rank[rows, columns] - 1] = later[rows, columns]
    chosen = np.array(list(combinations(range(_FAN), 3)))
    groups = fan[:, chosen].reshape(-1, 3)
    first = np.repeat(np.arange(count), len(chosen))
    formed = np.flatnonzero(groups[:, 2] >= 0)  # ranks fill the columns from the left
    times = frame[groups[formed]]
    apart = (np.diff(times, axis=1) >= _LEAST_STEP).all(axis=1)
    groups, first = groups[formed[apart]], first[formed[apart]]
    intervals = (pitch[groups] - pitch[first, None] + _WIDEST) / _INTERVAL + 0.5
    delays = frame[groups] - frame[first, None]
    duration = delays[:, 2]
    ratios = np.minimum(delays[:, :2] / duration[:, None] * _RATIOS, _RATIOS - 1e-3)
    octaves = np.log2(np.maximum(duration, _SHORTEST) / _SHORTEST)
    values = [
        *intervals.T,
        *ratios.T,
        pitch[first] / _REGISTER,
        np.minimum(octaves * _DURATIONS_PER_OCTAVE, _DURATIONS - 1e-3),
    ]
    return [value.astype(np.float64) for value in values], first, duration


def _join(levels: list[NDArray[np.int64]]) -> NDArray[np.uint32]:
    code = levels[0]
    for level, count in zip(levels[1:], _COUNTS[1:]):
        code = code * count + level
    return code.astype(np.uint32)
