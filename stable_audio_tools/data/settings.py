"""Settings of the audio files that a command writes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.settings import Settings, option

AudioFormat = Literal["wav", "flac", "mp3", "ogg", "opus"]
Bits = Literal[16, 24, 32]


@dataclass(frozen=True, kw_only=True)
class AudioFileSettings(Settings):
    """Which files are written."""

    format: AudioFormat = option("wav", "format of the audio files")
    bits: Bits = option(16, "bits of wav (32 is float) and flac samples")
    overwrite: bool = option(False, "write every file again")


MIRRORS = {
    "freesound": "https://cdn.freesound.org/mtg-jamendo",
    "mtg": "https://essentia.upf.edu/documentation/datasets/mtg-jamendo",
}
LISTS = "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data"


@dataclass(frozen=True)
class DownloadSettings(Settings):
    """What is downloaded, from where, and where it goes."""

    target: int = option(20_000, "tracks to have in the end", metavar="N", ge=1)
    audio_dir: str = option("dataset/small-20000/audio", "where tracks go, as NN/ID.mp3", metavar="DIR")
    mirror: str = option("freesound", "freesound, mtg, or the address that holds raw_30s/audio", metavar="NAME|URL")
    with_metadata: bool = option(False, "fetch raw_30s.tsv and raw.meta.tsv to the folder above the tracks, too")
    split: str | None = option(
        None, "only tracks of a published split, such as split-0/autotagging_genre-train", metavar="NAME"
    )
    workers: int = option(2, "tars to fetch at once", metavar="N", ge=1)
    partial_tars: bool = option(
        False, "stop at exactly N tracks, and fetch the last tar only as far as needed; else tars are taken whole"
    )
    keep_tars: bool = option(False, "leave the tars in _tar_cache beside the tracks")
    retries: int = option(8, "failures in a row before a tar is given up", metavar="N", ge=0)
    timeout: float = option(60.0, "seconds of silence that count as a failure", metavar="S", ge=1)
    lists: str = option(
        LISTS,
        "the data folder of the mtg-jamendo-dataset repository: sums, tables and splits",
        metavar="URL|DIR",
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.mirror not in MIRRORS and "://" not in self.mirror:
            yield f"--mirror: expected {' or '.join(MIRRORS)} or an address, got {self.mirror!r}"

    @property
    def root(self) -> Path:
        """The folder above the tracks."""
        return Path(self.audio_dir).absolute().parent

    @property
    def cache(self) -> Path:
        """The folder of tars."""
        return self.root / "_tar_cache"
