"""What `decode_mel.py` does: files of mel spectrograms to audio, through a vocoder."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.config import AudioError, CheckpointError, UserError
from stable_audio_tools.inference.audio_model import within_range
from stable_audio_tools.inference.decoding import decode_latents
from stable_audio_tools.inference.outputs import Bits, OutputFolder
from stable_audio_tools.inference.progress import progress_bar
from stable_audio_tools.mel.vocoders.bigvgan import BigVGANVocoder
from stable_audio_tools.models.checkpoints.pickles import read_pickle
from stable_audio_tools.models.pretransforms import Pretransform
from stable_audio_tools.system.ranks import rank, world_size

logger = logging.getLogger(__name__)

SUFFIXES = (".pt", ".npy", ".safetensors")
OVERLAP_FRAMES = 64  # of neighbouring chunks; more than twice what BigVGAN hears around a frame

Tell = Callable[[dict[str, Any]], None]


class LogMelDecoder(Pretransform):
    """Decoding alone: log amplitudes in natural units through BigVGAN."""

    def __init__(self, source: str, config_path: str | None = None) -> None:
        super().__init__(enable_grad=False, io_channels=1, is_discrete=False)
        self.vocoder = BigVGANVocoder(source, config_path)
        config = self.vocoder.network.config
        self.sample_rate = config.sampling_rate
        self.downsampling_ratio = config.hop_size
        self.encoded_channels = config.num_mels

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """(b, mels, t) to (b, 1, t * hop)"""
        return self.vocoder.decode_log_mel(z)[:, None]


@dataclass(frozen=True)
class DecodeSettings:
    """How the files are written; `chunk_frames` bounds the memory of long ones."""

    format: str = "wav"
    bits: Bits = 16
    overwrite: bool = False
    chunk_frames: int | None = None


def find_mels(folder: Path, format: str) -> dict[str, str]:
    """Output file -> mel file, both relative; folders below are looked into."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if not found:
        raise UserError(f"{folder}: holds no mel spectrograms ({', '.join(SUFFIXES)})")
    files: dict[str, str] = {}
    for path in found:
        file = path.with_suffix(f".{format}").as_posix()
        if file in files:
            raise UserError(f"{folder}: {files[file]} and {path.as_posix()} would be one file; rename one of them")
        files[file] = path.as_posix()
    return files


@torch.no_grad()
def decode_folder(
    decoder: Pretransform,
    about: dict[str, Any],
    folder: Path,
    files: dict[str, str],
    output: OutputFolder,
    settings: DecodeSettings,
    device: torch.device,
    tell: Tell = lambda record: None,
) -> list[str]:
    """Decode this process's share -> what failed, and why. `about` tells of the decoder, in each file's comment."""
    mine = list(files.items())[rank() :: world_size()]
    rate = decoder.sample_rate
    assert isinstance(rate, int)
    failed = []
    with progress_bar("decoding", len(mine)) as show:
        for number, (file, source) in enumerate(mine):
            show(number)
            try:
                wanted = {**about, **_told(folder, source), "bits": settings.bits}
                found = None if settings.overwrite else output.settings_of(file)
                if found is not None and found.items() >= wanted.items():
                    tell(output.record(file, found))
                    continue
                mel = read_mel(folder / source, decoder.encoded_channels)
                audio = decode_latents(decoder, mel[None].to(device), settings.chunk_frames, OVERLAP_FRAMES)[0]
                tell(output.write(file, within_range(audio.float().cpu()), rate, wanted, settings.bits))
            except AudioError as error:
                failed.append(str(error))
                logger.warning("%s", error)
    return failed


def _told(folder: Path, source: str) -> dict[str, Any]:
    status = (folder / source).stat()
    return {"source": source, "source_bytes": status.st_size, "source_time": status.st_mtime_ns}


def read_mel(path: Path, channels: int) -> Tensor:
    """Bands (d, t), float32, from `(d, t)`, `(1, d, t)` or `(c, mels, t)`."""
    values = _read(path)
    if not values.is_floating_point() or values.ndim < 2:
        raise AudioError(f"{path}: expected numbers of shape (bands, frames), got {_shape(values)} {values.dtype}")
    mel = values.float().flatten(0, -2)
    if len(mel) != channels or not mel.shape[1]:
        raise AudioError(f"{path}: holds {_shape(values)}; the vocoder takes {channels} bands")
    if not torch.isfinite(mel).all():
        raise AudioError(f"{path}: holds NaN or infinite values")
    return mel


def _read(path: Path) -> Tensor:
    """The only array of a file."""
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = read_pickle(path)
    except CheckpointError as error:
        raise AudioError(str(error)) from None
    except Exception as error:  # each reader has errors of its own for damaged files
        raise AudioError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    arrays: Sequence[Any] = list(content.values()) if isinstance(content, dict) else [content]
    tensors = [array for array in arrays if isinstance(array, Tensor)]
    if len(tensors) != 1:
        raise AudioError(f"{path}: expected one tensor, found {len(tensors)}")
    return tensors[0].detach()


def _shape(values: Tensor) -> str:
    return f"({', '.join(map(str, values.shape))})"
