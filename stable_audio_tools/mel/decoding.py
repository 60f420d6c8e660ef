"""Decodes files of mel spectrograms to audio, through a vocoder."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.core.errors import AudioError, CheckpointError, ConfigError, UserError
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.inference.batch.outputs import OutputFolder
from stable_audio_tools.inference.generation.decoding import decode_latents
from stable_audio_tools.inference.generation.model import within_range
from stable_audio_tools.latents.writing import DETAILS, read_details
from stable_audio_tools.mel.pretransform import MelPretransform
from stable_audio_tools.mel.settings import OVERLAP_FRAMES, DecodeSettings
from stable_audio_tools.mel.vocoders import BigVGANVocoder
from stable_audio_tools.models.checkpoints.pickles import read_pickle
from stable_audio_tools.models.pretransforms import Pretransform

logger = logging.getLogger(__name__)

SUFFIXES = (".pt", ".npy", ".safetensors")
UNIT_LIMIT = 1.5  # of values in [-1, 1]: models overshoot a little, and logarithms of sound reach far below

Report = Callable[[dict[str, object]], None]


class LogMelDecoder(Pretransform):
    """A decoder of log amplitudes in natural units, through BigVGAN; it cannot encode."""

    def __init__(self, source: str, config_path: str | None = None) -> None:
        super().__init__(enable_grad=False, io_channels=1, is_discrete=False)
        self.vocoder = BigVGANVocoder(source, config_path)
        config = self.vocoder.network.config
        self.sample_rate = config.sampling_rate
        self.downsampling_ratio = config.hop_size
        self.encoded_channels = config.num_mels

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:
        """(b, mels, t) to (b, 1, t * hop)"""
        return self.vocoder.decode_log_mel(z)[:, None]


def find_mels(folder: Path, format: str) -> dict[str, str]:
    """Return the mel file of each output file, both relative; subfolders are included."""
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


def check_details(decoder: Pretransform, folder: Path, files: dict[str, str]) -> None:
    """Check that latents with a recorded transform were computed by the decoder's."""
    parents = {(folder / source).resolve().parent for source in files.values()}
    roots = {*parents, *(parent.parent for parent in parents if parent.name.isdigit())}  # ROOT/0/NAME.npy
    for root in sorted(roots):
        details = read_details(root) or {}
        node = details.get("pretransform")
        if not isinstance(node, dict) or "sample_rate" not in details:
            continue
        if not isinstance(decoder, MelPretransform):
            raise ConfigError(
                f"--bigvgan-model: takes natural logarithms, and {root / DETAILS} records values in [-1, 1]; "
                "give --model-config with the mel transform that computed them"
            )
        difference = decoder.unlike(node, details["sample_rate"])
        if difference is not None:
            raise ConfigError(
                f"--model-config: has another mel transform than {root / DETAILS} records ({difference}); "
                "give the config that the spectrograms were computed with"
            )


@torch.no_grad()
def decode_folder(
    decoder: Pretransform,
    about: dict[str, object],
    folder: Path,
    files: dict[str, str],
    output: OutputFolder,
    settings: DecodeSettings,
    device: torch.device,
    report: Report = lambda record: None,
) -> list[str]:
    """Decode this process's share -> messages of failures. `about` describes the decoder in each file's comment."""
    mine = list(files.items())[rank() :: world_size()]
    rate = decoder.sample_rate
    assert isinstance(rate, int)
    failed = []
    with progress_bar("decoding", len(mine)) as show:
        for number, (file, source) in enumerate(mine):
            show(number)
            try:
                status = (folder / source).stat()
                facts = {"source": source, "source_bytes": status.st_size, "source_time": status.st_mtime_ns}
                wanted = {**about, **facts, "bits": settings.bits}
                found = None if settings.overwrite else output.settings_of(file)
                if found is not None and found.items() >= wanted.items():
                    report(output.record(file, found))
                    continue
                mel = read_mel(folder / source, decoder.encoded_channels)
                check_unit(folder / source, mel, decoder)
                audio = decode_latents(decoder, mel[None].to(device), settings.chunk_frames, OVERLAP_FRAMES)[0]
                report(output.write(file, within_range(audio.float().cpu()), rate, wanted, settings.bits))
            except AudioError as error:
                failed.append(str(error))
                logger.warning("%s", error)
    return failed


def read_mel(path: Path, channels: int) -> Tensor:
    """Read bands (d, t), float32, from `(d, t)`, `(1, d, t)` or `(c, mels, t)`."""
    values = _read(path)
    if not values.is_floating_point() or values.ndim < 2:
        raise AudioError(f"{path}: expected numbers of shape (bands, frames), got {_shape(values)} {values.dtype}")
    mel = values.float().flatten(0, -2)
    if len(mel) != channels or not mel.shape[1]:
        raise AudioError(f"{path}: holds {_shape(values)}; the vocoder takes {channels} bands")
    if not torch.isfinite(mel).all():
        raise AudioError(f"{path}: holds NaN or infinite values")
    return mel


def check_unit(path: Path, mel: Tensor, decoder: Pretransform) -> None:
    """Check for values in [-1, 1] of a mel transform, or natural logarithms for BigVGAN, which rarely stay in there."""
    low, high = mel.min().item(), mel.max().item()
    if isinstance(decoder, MelPretransform) and max(-low, high) > UNIT_LIMIT:
        raise AudioError(
            f"{path}: holds values from {low:.3g} to {high:.3g}, and --model-config has values in [-1, 1]; natural "
            "logarithms are decoded with --bigvgan-model"
        )
    if isinstance(decoder, LogMelDecoder) and low >= -1 and high <= 1:
        logger.warning(
            "%s: all values are in [-1, 1], and are taken for natural logarithms; if a model's mel transform computed "
            "them, decode with --model-config",
            path,
        )


def _read(path: Path) -> Tensor:
    """Read the only array of a file."""
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = read_pickle(path)
    except CheckpointError as error:
        raise AudioError(str(error)) from None
    except Exception as error:  # each reader raises other errors for damaged files
        raise AudioError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    arrays: Sequence[object] = list(content.values()) if isinstance(content, dict) else [content]
    tensors = [array for array in arrays if isinstance(array, Tensor)]
    if len(tensors) != 1:
        raise AudioError(f"{path}: expected one tensor, found {len(tensors)}")
    return tensors[0].detach()


def _shape(values: Tensor) -> str:
    return f"({', '.join(map(str, values.shape))})"
