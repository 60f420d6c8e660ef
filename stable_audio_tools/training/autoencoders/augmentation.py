"""Changes to the audio of a batch before an autoencoder sees it."""

import math

import torch
from torch import Tensor

_LOWEST, _HIGHEST = 100.0, 22_000.0  # Hz
_OCTAVES = (2.0, 6.5)
_LEVELS = (-24.0, -6.0)  # dB
_DITHER = 1e-4
_TAIL_SHARE = 0.05


def append_chirps(audio: Tensor, sample_rate: int, count: int) -> Tensor:
    """Append linear chirps, equal in all channels, to a batch (b, c, n): sweeps up or down over 2 to 6.5 octaves."""
    if count == 0:
        return audio
    top = min(_HIGHEST, 0.45 * sample_rate)
    start = torch.exp(math.log(_LOWEST) + math.log(top / _LOWEST) * torch.rand(count))
    up = torch.rand(count) < 0.5
    room = torch.where(up, torch.log2(top / start), torch.log2(start / _LOWEST)).clamp(min=0)
    octaves = torch.minimum(_OCTAVES[0] + (_OCTAVES[1] - _OCTAVES[0]) * torch.rand(count), room)
    end = start * 2 ** torch.where(up, octaves, -octaves)
    level = 10 ** ((_LEVELS[0] + (_LEVELS[1] - _LEVELS[0]) * torch.rand(count)) / 20)
    turns = torch.rand(count)[:, None]
    samples = audio.shape[-1]
    time = torch.arange(samples) / sample_rate
    slope = (end - start)[:, None] / (samples / sample_rate)
    chirps = level[:, None] * torch.cos(2 * math.pi * (start[:, None] * time + slope * time.square() / 2 + turns))
    chirps = chirps[:, None].expand(-1, audio.shape[1], -1) + _DITHER * torch.randn(count, audio.shape[1], samples)
    return torch.cat([audio, chirps.to(audio)])


def silence_tails(audio: Tensor, patch: int, most: int) -> Tensor:
    """Silence 1 to `most` patches at the end of one item in twenty, as padding to whole chunks does."""
    if most == 0:
        return audio
    chosen = torch.rand(len(audio)) < _TAIL_SHARE
    patches = torch.randint(1, most + 1, (len(audio),)) * chosen
    kept = torch.arange(audio.shape[-1])[None] < (audio.shape[-1] - patches * patch)[:, None]
    return audio * kept[:, None].to(audio)
