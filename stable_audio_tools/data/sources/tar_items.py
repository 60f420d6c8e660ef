"""Items from the bytes of one sample of a shard or a table: a clip of audio, or a crop of latents."""

import io
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.clips import ClipMaker, Crop
from stable_audio_tools.data.custom_metadata import ItemInfo, MetadataFunction, call_custom
from stable_audio_tools.data.draws import seeded
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.loader import Item
from stable_audio_tools.data.prompts import Captions, add_prompt
from stable_audio_tools.data.resampling import resampled_length
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS
from stable_audio_tools.data.sources.latents import as_tensor, crop_fractions, padding_mask_of
from stable_audio_tools.data.transforms import remove_long_silence, take


class SampleNames(NamedTuple):
    """The names of a sample."""

    path: str  # path of its shard and its name inside
    relpath: str  # the same, relative to the root of its dataset


class Content(NamedTuple):
    """One audio file of a shard or a table, still encoded."""

    path: str
    data: bytes | Path  # the encoded file, or its path
    suffix: str
    info: ItemInfo  # metadata beside it
    has_code: bool  # whether a user's function adds metadata


class ItemMaker(Protocol):
    """The conversion of a sample to an item."""

    suffixes: frozenset[str]  # of the files that it reads
    noun: str

    def make(
        self,
        content: bytes,
        suffix: str,
        info: ItemInfo,
        names: SampleNames,
        function: MetadataFunction | None,
        seed: int,
    ) -> Item:
        """Return an item, whose random choices depend only on `seed`; raise BadItem or AudioError."""


class SilenceRemoval(NamedTuple):
    """Shortening of silences of mono files before a clip is cut, as `remove_long_silence` does."""

    level: float = 0.01
    kept_seconds: float = 0.5
    longest_seconds: float = 0.25

    @classmethod
    def of(cls, threshold: Sequence[float], longest_seconds: float) -> "SilenceRemoval":
        """Convert the published keys `silence_threshold` and `max_silence_duration`."""
        return cls(threshold[0], threshold[1], longest_seconds)


class AudioItems:
    """Clips of audio files."""

    suffixes = frozenset(suffix[1:] for suffix in SCANNED_EXTENSIONS)
    noun = "audio"

    def __init__(self, clips: ClipMaker, silence_removal: SilenceRemoval | None = None) -> None:
        self.clips, self.silence_removal = clips, silence_removal

    def make(
        self,
        content: bytes | Path,
        suffix: str,
        info: Mapping[str, Any],
        names: SampleNames,
        function: MetadataFunction | None,
        seed: int,
    ) -> Item:
        """Decode `content`, an encoded file or its path."""
        rng = random.Random(seed)
        crop = self._cut(content, suffix.rpartition(".")[2], rng)
        clip = self.clips.augment(crop.audio, rng)
        made = self.clips.describe(info, crop, *names, rng)
        return self.clips.apply_custom(function, made, clip, crop.start, seed)

    def _cut(self, content: bytes | Path, kind: str, rng: random.Random) -> Crop:
        if isinstance(content, Path):
            return self._cut_from(content, rng)
        # Through a file, because ffmpeg and exact reading from the middle need one.
        with tempfile.TemporaryDirectory(prefix="stable_audio_tools_") as folder:
            file = Path(folder, f"audio.{kind}")
            try:
                file.write_bytes(content)
                return self._cut_from(file, rng)
            except BadItem:
                raise
            except AudioError as error:
                raise AudioError(str(error).removeprefix(f"{file}: ")) from None

    def _cut_from(self, file: Path, rng: random.Random) -> Crop:
        rate = self.clips.sample_rate
        about = audio_io.info(file)
        audio_io.check_end(file, about)
        if self.silence_removal is not None and about.channels == 1:
            whole = audio_io.read(file, sample_rate=rate).samples
            shorter = remove_long_silence(whole, rate, *self.silence_removal, rng)
            return self.clips.cut(lambda start, length: shorter[:, start : start + length], shorter.shape[1], rng)
        total = resampled_length(about.frames, about.sample_rate, rate)
        return self.clips.cut(lambda start, length: audio_io.read(file, start, length, rate).samples, total, rng)


class LatentItems:
    """Crops of pre-encoded latents."""

    suffixes = frozenset({"npy"})
    noun = "latents (.npy)"

    def __init__(self, crop_length: int | None, random_crop: bool, captions: Captions) -> None:
        self.crop_length, self.random_crop, self.captions = crop_length, random_crop, captions

    def make(
        self,
        content: bytes,
        suffix: str,
        info: ItemInfo,
        names: SampleNames,
        function: MetadataFunction | None,
        seed: int,
    ) -> Item:
        rng = random.Random(seed)
        try:
            stored = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError, EOFError, TypeError, OverflowError, SyntaxError) as error:
            raise AudioError(f"no readable latents ({error})") from None
        if stored.ndim != 2 or 0 in stored.shape or stored.dtype.kind not in "fiu":
            raise AudioError(f"expected latents of shape (channels, frames), got {stored.dtype} {stored.shape}")
        mask = padding_mask_of(info, stored.shape[1])
        length = self.crop_length or stored.shape[1]
        real = int(mask.nonzero()[-1]) + 1 if mask.any() else 0
        start = rng.randint(0, max(0, real - length)) if self.random_crop else 0
        latents = take(as_tensor(stored[:, start : start + length]), 0, length)
        if latents.is_floating_point() and not torch.isfinite(latents).all():
            raise BadItem("not finite", "holds NaN or infinite latents")
        info.update(latent_filename=names.path, padding_mask=take(mask, start, length))
        crop_fractions(info, start, length, len(mask))
        if self.crop_length is not None:
            info.update(latent_crop_length=length, latent_crop_start=start)
        add_prompt(info, self.captions, rng)
        return _answered(Item(latents, info), function, seed)


def _answered(item: Item, function: MetadataFunction | None, seed: int) -> Item:
    if function is not None:
        with seeded(seed):
            item.info.update(call_custom(function, item.info, None))
    if item.info.pop("__reject__", False):
        raise BadItem("rejected", "by get_custom_metadata", lasting=False)
    replacement = item.info.pop("__replace__", None)
    return item if replacement is None else Item(replacement, item.info)
