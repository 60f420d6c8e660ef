"""Fixed windows over audio: the same audio is always cut in the same places."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.errors import ConfigError


@dataclass(frozen=True)
class Windows:
    """Windows of `seconds`, one every `hop_seconds`."""

    seconds: float
    hop_seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.hop_seconds <= self.seconds:
            raise ConfigError(
                f"hop_seconds: expected more than 0 and at most the window of {self.seconds:g} s, "
                f"got {self.hop_seconds:g}"
            )

    def cut(self, audio: Tensor, sample_rate: int) -> Tensor:
        """(n,) -> (w, window), or (1, n) where the audio is shorter than a window.

        What remains at the end gets a window that ends with the audio if it is half a hop or more, else none.
        """
        length, hop = round(self.seconds * sample_rate), round(self.hop_seconds * sample_rate)
        if audio.shape[-1] <= length:
            return audio[None]
        rows = audio.unfold(0, length, hop)
        rest = audio.shape[-1] - ((len(rows) - 1) * hop + length)
        return torch.cat([rows, audio[None, -length:]]) if 2 * rest >= hop else rows


def fill_up(audio: Tensor, samples: int) -> Tensor:
    """(b, n) followed by silence up to a length."""
    return F.pad(audio, (0, max(0, samples - audio.shape[-1])))
