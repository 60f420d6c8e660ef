"""Codes without weights: pitch classes and their succession, spectral shapes, and rising and falling bands."""

from itertools import pairwise

import torch
from torch import Tensor

from stable_audio_tools.dedup.codecs.base import Codec, Sound
from stable_audio_tools.dedup.spectrum import MEL_BANDS

_LAGS = (2, 5, 10)  # frames from one pitch class to the next
_PAIR = 12  # two numbers below 12 are combined into one code
_REGIONS = (0, 11, 22, MEL_BANDS)
_GROUP = 6  # bands per movement code, three movements each: 3 ** 6 = 729
_STEP = 4  # frames over which a movement is measured
_MOVED = 18  # byte steps, 4.3 dB


class SpectralCodec(Codec):
    """Codec of eleven streams from mel bands and pitch classes; needs neither weights nor a GPU."""

    num_codebooks = 11
    codebook_size = 3**_GROUP
    threshold = 0.9
    identity = "spectral 1"

    def codes(self, sound: Sound) -> list[Tensor]:
        mel, chroma, loud = (torch.from_numpy(array) for array in sound.frames)
        return [*_pitch_codes(chroma, loud), *_shape_codes(mel, loud), *_movement_codes(mel.long(), loud)]


def _pitch_codes(chroma: Tensor, loud: Tensor) -> list[Tensor]:
    """Encode the two strongest pitch classes of a frame, and the strongest with the one of a later frame."""
    first, second = chroma.long().argsort(dim=0, descending=True, stable=True)[:2]
    together = torch.minimum(first, second) * _PAIR + torch.maximum(first, second)
    successions = [(first[:-lag] * _PAIR + first[lag:])[loud[:-lag] & loud[lag:]] for lag in _LAGS]
    return [together[loud], *successions]


def _shape_codes(mel: Tensor, loud: Tensor) -> list[Tensor]:
    """Encode the loudest band in two neighbouring regions of the spectrum."""
    peaks = [mel[start:stop].argmax(0) for start, stop in pairwise(_REGIONS)]
    return [(low * _PAIR + high)[loud] for low, high in pairwise(peaks)]


def _movement_codes(mel: Tensor, loud: Tensor) -> list[Tensor]:
    """Encode which of six neighbouring bands rose, fell or stayed."""
    change, both = mel[:, _STEP:] - mel[:, :-_STEP], loud[_STEP:] & loud[:-_STEP]
    moved = (change > _MOVED).long() * 2 + (change < -_MOVED).long()
    weights = 3 ** torch.arange(_GROUP)[:, None]
    groups = range(0, MEL_BANDS - _GROUP + 1, _GROUP)
    return [(moved[start : start + _GROUP] * weights).sum(0)[both] for start in groups]
