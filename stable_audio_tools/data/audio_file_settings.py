"""Settings of the audio files that a command writes."""

from dataclasses import dataclass
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
