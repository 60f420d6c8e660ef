"""Clips for training, cut from audio files of any source."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from stable_audio_tools.data.custom_metadata import ItemInfo, MetadataFunction, call_custom
from stable_audio_tools.data.draws import seeded
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.loader import Item
from stable_audio_tools.data.prompts import Captions, add_prompt
from stable_audio_tools.data.transforms import SILENCE, VolumeNorm, describe_crop, set_channels, take

_TRIES_FOR_SOUND = 4  # places tried before a file with silent parts is left out of an epoch

Read = Callable[[int, int], Tensor]  # (first sample, samples) -> (c, n), fewer at the end of the file


class Crop(NamedTuple):
    """A piece of a file and its position."""

    audio: Tensor  # (c, sample_size)
    start: int  # in samples
    total: int  # samples of the file


def span_fractions(spans: object, rate: int, start: int, length: int) -> list[tuple[float, float]]:
    """Return spans [start, end] in seconds of a file as fractions of a crop, without those outside of it."""
    pairs = spans if isinstance(spans, list | tuple) else [None]
    fractions = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(x, int | float) for x in pair):
            raise BadItem("bad metadata", f"loss_spans: expected [[start, end], ...] in seconds, got {spans!r}")
        if not 0 <= pair[0] < pair[1]:
            raise BadItem("bad metadata", f"loss_spans: expected 0 <= start < end, got {list(pair)}")
        begin, end = ((seconds * rate - start) / length for seconds in pair)
        if end > 0 and begin < 1:
            fractions.append((max(0.0, begin), min(1.0, end)))
    return fractions


class ClipMaker:
    """Cuts clips out of files, normalises their form, and calls the user's metadata function."""

    def __init__(
        self,
        sample_size: int,
        sample_rate: int,
        channels: int,
        *,
        random_crop: bool = True,
        augment_phase: bool = True,
        volume_norm: Sequence[float] | None = None,
        allow_silence: bool = False,
        captions: Captions = Captions(),  # noqa: B008 (immutable)
    ) -> None:
        self.sample_size, self.sample_rate, self.channels = sample_size, sample_rate, channels
        self.random_crop, self.augment_phase, self.allow_silence = random_crop, augment_phase, allow_silence
        self.normalize = VolumeNorm(volume_norm, sample_rate) if volume_norm is not None else None
        self.captions = captions

    def cut(self, read: Read, total: int, rng: random.Random) -> Crop:
        """Return a crop of a file of `total` samples, at a place where it is not silent."""
        spare = max(0, total - self.sample_size)
        tries = _TRIES_FOR_SOUND if self.random_crop and spare else 1
        for _ in range(tries):
            start = rng.randint(0, spare) if self.random_crop else 0
            audio = read(start, self.sample_size)
            if audio.shape[1] == 0:
                raise BadItem("unreadable", f"its data ends before sample {start} of {total}")
            peak = audio.abs().max().item()  # NaN where any sample is
            if not math.isfinite(peak):
                raise BadItem("not finite", "holds NaN or infinite samples")
            if self.allow_silence or peak >= SILENCE:
                return Crop(take(audio, 0, self.sample_size), start, total)
        where = f"below -60 dB at {tries} places" if tries > 1 else "below -60 dB"
        raise BadItem("silent", where, lasting=spare == 0)

    def augment(self, audio: Tensor, rng: random.Random) -> Tensor:
        """Set channels, loudness and polarity, and clamp to [-1, 1]."""
        audio = set_channels(audio, self.channels)
        if self.normalize is not None:
            with seeded(rng.getrandbits(63)):
                audio = self.normalize(audio)
        if self.augment_phase and rng.random() < 0.5:
            audio = -audio
        return audio.clamp(-1, 1)

    def describe(self, info: Mapping[str, Any], crop: Crop, path: str, relpath: str, rng: random.Random) -> ItemInfo:
        """Return the metadata of a clip: that of its file, the prompt, and the position of the crop."""
        facts = describe_crop(crop.start, self.sample_size, crop.total, self.sample_rate)
        made = dict(info)
        add_prompt(made, self.captions, rng)
        made.update(
            path=path,
            relpath=relpath,
            timestamps=(facts.t_start, facts.t_end),
            seconds_start=facts.seconds_start,
            seconds_total=facts.seconds_total,
            padding_mask=facts.padding_mask,
            sample_rate=self.sample_rate,
        )
        return made

    def apply_custom(
        self, function: MetadataFunction | None, info: ItemInfo, clip: Tensor, start: int, seed: int
    ) -> Item:
        """Add the result of the user's function, apply its special keys, and locate `loss_spans` in the clip."""
        if function is not None:
            with seeded(seed):
                info.update(call_custom(function, info, clip))
            if info.pop("__reject__", False):
                raise BadItem("rejected", "by get_custom_metadata", lasting=False)
            if (replacement := info.pop("__replace__", None)) is not None:
                clip = self._fit(replacement, 0)
            for key, extra in info.pop("__audio__", {}).items():
                info[key] = self._fit(extra, start if extra.shape[-1] > self.sample_size else 0)
        if "loss_spans" in info:
            info["loss_fractions"] = span_fractions(info["loss_spans"], self.sample_rate, start, self.sample_size)
        return Item(clip, info)

    def _fit(self, audio: Tensor, start: int) -> Tensor:
        """Cut at the same place as the clip, and set the same channels."""
        return set_channels(take(audio.clamp(-1, 1), start, self.sample_size), self.channels)
