"""Published helpers around datasets, for code of other people that builds its own."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.data import silence
from stable_audio_tools.data.scanning import fast_scandir, holds_keyword
from stable_audio_tools.data.transforms import is_silence

logger = logging.getLogger(__name__)

AUDIO_KEYS = ("flac", "wav", "mp3", "m4a", "ogg", "opus")  # suffixes of the audio in tar files


def keyword_scandir(dir: str, ext: Sequence[str], keywords: Sequence[str]) -> tuple[list[str], list[str]]:
    """(folders, files with one of the extensions whose name holds a keyword) below `dir`."""
    folders, files = fast_scandir(dir, ext)
    return folders, [file for file in files if holds_keyword(Path(file).name, keywords)]


def get_latent_filenames(paths: str | Sequence[str], extensions: Sequence[str] = ("npy",)) -> list[str]:
    """Files of latents below the folders; a folder's `filelist.txt` names its files without a search."""
    names: list[str] = []
    for root in [paths] if isinstance(paths, str) else paths:
        listed = Path(root, "filelist.txt")
        if listed.exists():
            names += [str(Path(root, line.strip())) for line in listed.read_text().splitlines() if line.strip()]
        else:
            names += fast_scandir(root, extensions)[1]
    return names


def get_dbmax(audio: Tensor) -> float:
    """The peak of a clip in dB of full scale."""
    return float(20 * torch.log10(audio.abs().max()))


def is_silence_audio(audio: Tensor, silence_threshold: float = 0.01, max_silence_ratio: float = 0.3) -> bool:
    """Whether more than this share of any channel (c, n) stays below the threshold."""
    silent = (audio.abs() < silence_threshold).float().mean(dim=1)
    return bool((silent > max_silence_ratio).any())


def is_valid_sample(sample: Mapping[str, Any]) -> bool:
    """Whether a decoded tar entry has metadata and audio that is neither silent nor rejected by its metadata."""
    if "json" not in sample or "audio" not in sample:
        return False
    is_audible = bool(sample.get("__pre_encoded__")) or not is_silence(sample["audio"])
    return is_audible and not sample["json"].get("__reject__", False)


def log_and_continue(exn: Exception) -> bool:
    """Report a fault of a stream of tars and go on: a handler of webdataset."""
    logger.warning("webdataset: %r; the item is left out", exn)
    return True


def remove_long_silence(
    audio: Tensor,
    sample_rate: int,
    silence_threshold: Sequence[float] = (0.01, 0.5),
    max_silence_duration: float = 0.25,
) -> Tensor:
    """Mono audio (1, n) with long silences cut down; `silence_threshold` is (level, seconds that are kept)."""
    level, kept_seconds = silence_threshold
    return silence.remove_long_silence(audio, sample_rate, level, kept_seconds, max_silence_duration)


def audio_decoder(key: str, value: bytes) -> tuple[Tensor, int] | None:
    """Audio (c, n) and its sample rate out of the bytes of a tar entry; None where the suffix is not one of audio."""
    if key.rpartition(".")[2] not in AUDIO_KEYS:
        return None
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(value), dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), int(rate)


def npy_decoder(key: str, value: bytes) -> NDArray[Any] | None:
    """The array in the bytes of a tar entry; None where its suffix is not `npy`."""
    if key.rpartition(".")[2] != "npy":
        return None
    array: NDArray[Any] = np.load(io.BytesIO(value), allow_pickle=False)
    return array
