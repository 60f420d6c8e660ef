"""Conversion of audio to the input of an encoder: its rate, its channels, whole frames."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.errors import AudioError


def match_channels(audio: Tensor, channels: int) -> Tensor:
    """Mix down by the mean, spread one channel over several, or keep the first `channels`; channels on axis -2."""
    present = audio.shape[-2]
    if present == channels:
        return audio
    if channels == 1:
        return audio.mean(dim=-2, keepdim=True)
    if present == 1:
        return audio.expand(*audio.shape[:-2], channels, audio.shape[-1])
    if present > channels:
        return audio[..., :channels, :]
    raise AudioError(f"audio has {present} channels, the model takes {channels}; give it 1 or at least {channels}")


def fold_channels_into_batch(x: Tensor) -> Tensor:
    """(b, c, ...) -> (b * c, ...)"""
    return x.flatten(0, 1)


def unfold_channels_from_batch(x: Tensor, channels: int) -> Tensor:
    """(b * c, ...) -> (b, c, ...)"""
    return x.unflatten(0, (-1, channels))


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample the last axis, band-limited."""
    if from_rate == to_rate:
        return audio
    from torchaudio.transforms import Resample

    resampled: Tensor = Resample(from_rate, to_rate).to(audio.device)(audio)
    return resampled


def as_clip(audio: Tensor) -> Tensor:
    """Return a clip of shape (n,), (c, n) or (1, c, n) as (c, n)."""
    if audio.ndim == 3 and audio.shape[0] == 1:
        audio = audio[0]
    if audio.ndim == 1:
        audio = audio[None]
    if audio.ndim != 2:
        raise AudioError(f"one clip must be shaped (channels, samples), got {tuple(audio.shape)}")
    if not audio.is_floating_point():
        raise AudioError(f"audio must be floating point in [-1, 1], got {audio.dtype}; divide integers by their range")
    if audio.shape[-1] == 0:
        raise AudioError("the clip is empty: it has no samples")
    return audio


def batch_clips(clips: Sequence[Tensor], rates: Sequence[int], sample_rate: int, channels: int, step: int) -> Tensor:
    """Convert clips (c, n) of any rate, length and channel count to one batch (b, c, n), n a multiple of `step`.

    Shorter clips are followed by silence.
    """
    resampled = [resample(as_clip(clip), rate, sample_rate) for clip, rate in zip(clips, rates)]
    longest = max(clip.shape[-1] for clip in resampled)
    length = math.ceil(longest / step) * step
    padded = [F.pad(clip, (0, length - clip.shape[-1])) for clip in resampled]
    return torch.stack([match_channels(clip, channels) for clip in padded])
