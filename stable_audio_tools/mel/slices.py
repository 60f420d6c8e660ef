"""Audio files cut whole into slices of as many frames as an image is wide, each with its mel bands.

The last slice of a file ends where the file does and overlaps the one before it; a file shorter than a slice is filled
up with silence, which its padding mask tells. So nothing of a file is left out but slices without sound.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.clips import Crop
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.inventory import Inventory
from stable_audio_tools.data.loader import Item
from stable_audio_tools.data.metadata import read_sidecar
from stable_audio_tools.data.resampling import resampled_length
from stable_audio_tools.data.sources.audio_dir import SampleDataset
from stable_audio_tools.data.sources.configs import LocalDatasetConfig
from stable_audio_tools.data.transforms import SILENCE, take
from stable_audio_tools.latents.writing import dataset_key
from stable_audio_tools.mel.pretransform import MelPretransform


@dataclass(frozen=True)
class Slice:
    """A file by its number, and the slice of it."""

    file: int
    number: int


class MelSlices:
    """Slices of all audio files below a folder, as items that any process can read one by one."""

    def __init__(self, folder: str, pretransform: MelPretransform, frames: int) -> None:
        self.pretransform = pretransform
        self.frames = frames
        self.samples = frames * pretransform.downsampling_ratio
        rate, channels = pretransform.sample_rate, pretransform.io_channels
        config = LocalDatasetConfig("audio", folder)
        self.source = SampleDataset(
            [config], self.samples, rate, random_crop=False, force_channels=channels, augment_phase=False
        )
        self.known_faults = self.source.known_faults
        counts = [self._count(file) for file in range(len(self.source))]
        self.first = np.cumsum([0, *counts])  # the number of each file's first slice
        self.groups: NDArray[np.int64] = np.zeros(int(self.first[-1]), np.int64)
        self.weights: NDArray[np.float64] = np.ones(1)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def key(self) -> str:
        """Changes with the files, their sizes, their times and their order."""
        return dataset_key(SimpleNamespace(dataset=self.source))

    def find(self, item: int) -> Slice:
        file = int(np.searchsorted(self.first, item, side="right")) - 1
        return Slice(file, item - int(self.first[file]))

    def path(self, item: int) -> str:
        """The file of an item, and which slice of it."""
        found = self.find(item)
        return f"{self.source.path(found.file)}#{found.number}"

    def inventories(self) -> list[Inventory]:
        return self.source.inventories()

    def load(self, draw: Draw) -> Item:
        """Bands (d, t) of one slice with its metadata; BadItem where there is no sound in it."""
        found = self.find(draw.item)
        place = self.source.files.place(found.file)
        total = self._total(found.file)
        start = min(found.number * self.samples, max(0, total - self.samples))
        read = audio_io.read(place.path, start, self.samples, self.pretransform.sample_rate).samples
        audio = self.source.clips.augment(take(read, 0, self.samples), random.Random(draw.number))
        peak = audio.abs().max().item()  # NaN where any sample is
        if not np.isfinite(peak):
            raise BadItem("not finite", "holds NaN or infinite samples")
        if peak < SILENCE:
            raise BadItem("silent", f"slice {found.number} is below -60 dB")
        crop = Crop(audio, start, total)
        info = self.source.clips.describe(
            read_sidecar(place.path), crop, place.path, place.relpath, random.Random(draw.number)
        )
        return Item(self.encode(audio), {**info, "slice": found.number})

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        bands: Tensor = self.pretransform.encode(audio[None])[0]
        return bands

    def _count(self, file: int) -> int:
        return max(1, -(-self._total(file) // self.samples))

    def _total(self, file: int) -> int:
        place = self.source.files.place(file)
        index, row = place.folder.index, place.row
        return resampled_length(int(index.frames[row]), int(index.rates[row]), self.pretransform.sample_rate)
