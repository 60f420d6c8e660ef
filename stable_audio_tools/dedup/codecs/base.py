"""Base class of the codecs of deduplication, whose code histograms are compared."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.data.resampling import resample
from stable_audio_tools.data.transforms import set_channels
from stable_audio_tools.dedup.spectrum import SAMPLE_RATE, Frames, analyse


class Sound(NamedTuple):
    """A decoded file and its frames."""

    samples: Tensor  # (c, n)
    rate: int
    frames: Frames

    @classmethod
    def of(cls, samples: Tensor, rate: int) -> "Sound":
        """Analyse audio (c, n)."""
        return cls(samples, rate, analyse(resample(samples.mean(0), rate, SAMPLE_RATE)))

    def at(self, rate: int, channels: int) -> Tensor:
        """Return the audio as (channels, n) at a sample rate."""
        return set_channels(resample(self.samples, self.rate, rate), channels)


class Codec(ABC):
    """Encoder of audio into `num_codebooks` streams of codes below `codebook_size`."""

    num_codebooks: int
    codebook_size: int
    threshold: float  # similarity from which a pair is a candidate
    identity: str  # equal for codecs that give equal codes

    @abstractmethod
    def codes(self, sound: Sound) -> list[Tensor]:
        """Return the codes of each codebook, `(t,)` each; streams may differ in length."""

    def count(self, sound: Sound) -> Tensor:
        """Count the uses of each codebook entry: (codebooks, entries)."""
        streams = self.codes(sound)
        return torch.stack([torch.bincount(stream.cpu(), minlength=self.codebook_size) for stream in streams])
