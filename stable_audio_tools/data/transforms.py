"""Transforms of one clip `(c, n)`: cropping, channels, phase, loudness, silence; and the lengths of a batch."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.transforms import Loudness

SILENCE = 0.001  # peak of a clip at -60 dB of full scale
_LOUDNESS_BLOCK_SECONDS = 0.4  # ITU-R BS.1770 measures in blocks of this length


class CropInfo(NamedTuple):
    """The position of a crop in its file."""

    t_start: float  # as a fraction of the file, or of the crop where the file is shorter
    t_end: float
    seconds_start: int  # rounded down
    seconds_total: int  # length of the file, rounded up
    padding_mask: Tensor  # (n,) 1 where there is audio, 0 where there is padding


class NormalizedCrop(NamedTuple):
    """A crop and its position in its file."""

    audio: Tensor  # (c, n)
    t_start: float
    t_end: float
    seconds_start: int
    seconds_total: int
    padding_mask: Tensor  # (n,)


def take(audio: Tensor, start: int, length: int) -> Tensor:
    """Return `length` samples from `start`, padded with zeros."""
    piece = audio[..., start : start + length]
    return piece if piece.shape[-1] == length else F.pad(piece, (0, length - piece.shape[-1]))


def describe_crop(start: int, length: int, total: int, sample_rate: int) -> CropInfo:
    """Return the position of a crop of `length` samples at `start` in a file of `total` samples."""
    whole = max(total, length)
    mask = torch.ones(length)
    mask[max(0, total - start) :] = 0
    return CropInfo(
        start / whole, (start + length) / whole, math.floor(start / sample_rate), math.ceil(total / sample_rate), mask
    )


def set_channels(audio: Tensor, channels: int) -> Tensor:
    """Convert `(n,)` or `(c, n)` to `(channels, n)`: average to one channel, else keep the first ones or repeat."""
    audio = audio[None] if audio.ndim == 1 else audio
    have = audio.shape[0]
    if have == channels:
        return audio
    if channels == 1:
        return audio.mean(0, keepdim=True)
    return audio.repeat(-(-channels // have), 1)[:channels]


class PadCrop(nn.Module):
    """Cut to `n_samples`, from a random place or from the start; short audio is padded with zeros at its end."""

    def __init__(self, n_samples: int, randomize: bool = True) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.randomize = randomize

    def forward(self, signal: Tensor) -> Tensor:
        spare = max(0, signal.shape[-1] - self.n_samples)
        start = int(torch.randint(0, spare + 1, ())) if self.randomize else 0
        return take(signal, start, self.n_samples)


class PadCrop_Normalized_T(nn.Module):
    """Cut to `n_samples` and return the position of the crop; draws from Python's `random`.

    Without `pad`, shorter audio keeps its length.
    """

    def __init__(self, n_samples: int, sample_rate: int, randomize: bool = True, pad: bool = True) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.sample_rate = sample_rate
        self.randomize = randomize
        self.pad = pad

    def forward(self, source: Tensor) -> NormalizedCrop:
        total = source.shape[-1]
        if total < self.n_samples and not self.pad:
            facts = describe_crop(0, self.n_samples, total, self.sample_rate)
            return NormalizedCrop(source, *facts[:-1], facts.padding_mask[:total])
        start = random.randint(0, total - self.n_samples) if self.randomize and total > self.n_samples else 0
        facts = describe_crop(start, self.n_samples, total, self.sample_rate)
        return NormalizedCrop(take(source, start, self.n_samples), *facts)


class PhaseFlipper(nn.Module):
    """Invert the polarity with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, signal: Tensor) -> Tensor:
        return -signal if random.random() < self.p else signal


class Mono(nn.Module):
    """Average the channels; `(n,)` is unchanged."""

    def forward(self, signal: Tensor) -> Tensor:
        return signal if signal.ndim < 2 else signal.mean(0, keepdim=True)


class Stereo(nn.Module):
    """Return two channels: mono is doubled, of more the first two are kept."""

    def forward(self, signal: Tensor) -> Tensor:
        return set_channels(signal, 2) if signal.ndim <= 2 else signal


class VolumeNorm(nn.Module):
    """Set a clip to a loudness drawn from `params = (LUFS, +- dB)`; silence and clips under 0.4 s are unchanged."""

    def __init__(
        self, params: Sequence[float] = (-16, 2), sample_rate: int = 16000, energy_threshold: float = 1e-6
    ) -> None:
        super().__init__()
        self.loudness = Loudness(sample_rate)
        self.value, self.spread = params
        self.shortest = math.ceil(_LOUDNESS_BLOCK_SECONDS * sample_rate)
        self.energy_threshold = energy_threshold

    def forward(self, signal: Tensor) -> Tensor:
        if signal.shape[-1] < self.shortest or signal.square().mean() < self.energy_threshold:
            return signal
        wanted = self.value + (2 * torch.rand(1).item() - 1) * self.spread
        louder = signal * 10 ** ((wanted - self.loudness(signal)) / 20)
        peak = louder.abs().max()
        return louder * (0.95 / peak) if peak > 1 else louder


def strip_trailing_silence(
    audio: Tensor, sample_rate: int, threshold_db: float = -60, min_silence_duration: float = 0.1
) -> Tensor:
    """Remove the silence at the end of a clip (c, n) if it is long enough; a silent clip becomes empty.

    Silence is measured in frames of 10 ms, by their peak in dB of full scale.
    """
    hop = max(1, int(sample_rate * 0.01))
    frames = audio.shape[-1] // hop
    if frames == 0:
        return audio
    peaks = audio[..., : frames * hop].float().abs().amax(0).unflatten(0, (frames, hop)).amax(1)
    heard = (20 * torch.log10(peaks + 1e-10) > threshold_db).nonzero()
    end = int(heard[-1] + 1) * hop if len(heard) else 0
    too_short = end > 0 and audio.shape[-1] - end < int(sample_rate * min_silence_duration)
    return audio if too_short else audio[..., :end]


def is_silence(audio: Tensor, thresh: float = -60) -> bool:
    """Return whether the whole clip stays below `thresh` dB of full scale."""
    peak = audio.abs().max().item() if audio.numel() else 0.0
    return peak < 10 ** (thresh / 20)


def float_to_int16_audio(x: Tensor, maximize: bool = False) -> Tensor:
    """Convert to 16-bit samples; audio above full scale is scaled down to it, with `maximize` quiet audio up to it."""
    peak = x.abs().max() if x.numel() else x.new_ones(())
    peak = peak.clamp_min(1e-8) if maximize else peak.clamp_min(1.0)
    return (x / peak * 32767).to(torch.int16).cpu()


def remove_long_silence(
    audio: Tensor,
    sample_rate: int,
    level: float = 0.01,
    kept_seconds: float = 0.5,
    longest_seconds: float = 0.25,
    rng: random.Random | None = None,
) -> Tensor:
    """Replace each silence of mono audio `(1, n)` longer than `longest_seconds` by a piece of itself.

    Samples below `level` (of full scale) are silent. The piece lasts `kept_seconds`, or the whole silence if that is
    shorter, and comes from a place drawn from `rng`.
    """
    draw = rng or random.Random(0)
    kept, longest = int(kept_seconds * sample_rate), int(longest_seconds * sample_rate)
    silent = audio[0].abs() < level
    ends = (torch.diff(silent.int()).nonzero()[:, 0] + 1).tolist()
    pieces = []
    start = 0
    for stop in [*ends, audio.shape[1]]:
        length = stop - start
        if length and silent[start] and length > max(longest, kept):
            begin = start + draw.randint(0, length - kept)
            pieces.append(audio[:, begin : begin + kept])
        else:
            pieces.append(audio[:, start:stop])
        start = stop
    return torch.cat(pieces, dim=1)


def create_padding_mask_from_lengths(valid_lengths: Tensor, total_seq_len: int) -> Tensor:
    """Convert lengths (b,) to a mask (b, total), True at real frames."""
    return torch.arange(total_seq_len, device=valid_lengths.device) < valid_lengths[:, None]


def compute_effective_seq_len_from_conditioning(
    conditioning: Sequence[Mapping[str, Any]] | None,
    sample_rate: int,
    downsampling_ratio: int = 1,
    device: str | torch.device = "cpu",
) -> Tensor | None:
    """Return latent frames (b,) of the items' `seconds_total`; None unless every item has one."""
    seconds = seconds_of(conditioning)
    if seconds is None:
        return None
    frames = [math.ceil(int(value * sample_rate) / downsampling_ratio) for value in seconds]
    return torch.tensor(frames, dtype=torch.float32, device=device)


def seconds_of(conditioning: Sequence[Mapping[str, Any]] | None) -> list[float] | None:
    """Return `seconds_total` of every item; None unless all have one."""
    if not conditioning or not all("seconds_total" in item for item in conditioning):
        return None
    values = (item["seconds_total"] for item in conditioning)  # collation may wrap a number in a list
    return [float(value[0] if isinstance(value, list | tuple) else value) for value in values]
