"""What a codec of deduplication is: codes of a recording, whose histograms are compared."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.data.resampling import resample
from stable_audio_tools.data.transforms import set_channels
from stable_audio_tools.dedup.spectrum import SAMPLE_RATE, Frames, analyse


class Sound(NamedTuple):
    """A decoded file, and its frames."""

    samples: Tensor  # (c, n)
    rate: int
    frames: Frames

    @classmethod
    def of(cls, samples: Tensor, rate: int) -> "Sound":
        """Audio (c, n) with its frames."""
        return cls(samples, rate, analyse(resample(samples.mean(0), rate, SAMPLE_RATE)))

    def at(self, rate: int, channels: int) -> Tensor:
        """Audio (channels, n) at a rate."""
        return set_channels(resample(self.samples, self.rate, rate), channels)


class Codec(ABC):
    """Makes codes in `num_codebooks` streams, each below `codebook_size`."""

    num_codebooks: int
    codebook_size: int
    threshold: float  # similarity from which a pair is worth a second look
    identity: str  # equal for codecs that make equal codes

    @abstractmethod
    def codes(self, sound: Sound) -> list[Tensor]:
        """Codes of each codebook, `(t,)` each; streams may differ in length."""

    def count(self, sound: Sound) -> Tensor:
        """How often each codebook uses each of its entries: (codebooks, entries)."""
        streams = self.codes(sound)
        return torch.stack([torch.bincount(stream.cpu(), minlength=self.codebook_size) for stream in streams])
