"""Short sounds, of tones and noise, as tensors and as files."""

from pathlib import Path

import torch

from stable_audio_tools.data.audio_io import write

RATE = 16000


def tone(seed: int, seconds: float = 1.5, channels: int = 1) -> torch.Tensor:
    """A few partials and some noise, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)) / RATE
    pitches = 100 + 2000 * torch.rand(3, generator=generator)
    partials = torch.sin(2 * torch.pi * pitches[:, None] * time).sum(0)
    noise = torch.randn(channels, len(time), generator=generator)
    return (0.2 * partials + 0.02 * (1 + seed % 3) * noise).clamp(-1, 1)


def write_tones(folder: Path, count: int, first: int = 0, seconds: float = 1.5) -> Path:
    """`count` files `tone_NN.wav`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        write(folder / f"tone_{index:02d}.wav", tone(first + index, seconds), RATE)
    return folder
