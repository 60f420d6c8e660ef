"""Audio through an autoencoder and back: one clip, or a folder with a table of how close each came."""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.config import AudioError, UserError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS, Unreachable, walk
from stable_audio_tools.inference.metrics import compare
from stable_audio_tools.inference.outputs import Bits, OutputFolder, collisions
from stable_audio_tools.inference.progress import progress_bar
from stable_audio_tools.inference.randomness import RandomStream
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.autoencoders.chunking import ChunkPlan, in_batches
from stable_audio_tools.models.autoencoders.weight_norm import folded_weight_norm
from stable_audio_tools.models.pretransforms import AutoencoderPretransform
from stable_audio_tools.system.devices import autocast, parse_dtype
from stable_audio_tools.system.ranks import rank, world_size
from stable_audio_tools.system.seeds import MAX_SEED

logger = logging.getLogger(__name__)


def codec_of(model: nn.Module) -> AudioAutoencoder:
    """The autoencoder that a model is, or has inside."""
    inner = getattr(model, "pretransform", None)
    codec = inner.model if isinstance(inner, AutoencoderPretransform) else model
    if isinstance(model, AudioAutoencoder):
        codec = model
    if not isinstance(codec, AudioAutoencoder):
        raise UserError("this model has no autoencoder to pass audio through; give one whose config has")
    return codec


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    audio: Tensor,
    sample_rate: int,
    *,
    device: str | torch.device = "cpu",
    frame_seconds: float = 30.0,
    overlap_rate: float = 1 / 30,
    batch_size: int = 1,
    **decoding: Any,
) -> Tensor:
    """One clip (c, n) of any length, encoded and decoded, at the rate and with the channels of the model.

    Longer clips pass in frames of `frame_seconds`, `batch_size` at once, that overlap by a share of `overlap_rate` and
    are cross-faded there.
    """
    codec = codec_of(model)
    length = math.ceil(audio.shape[-1] * codec.sample_rate / sample_rate)
    prepared = codec.preprocess_audio_for_encoder(audio, sample_rate).to(device)
    ratio, multiple = codec.downsampling_ratio, codec.min_length // codec.downsampling_ratio
    size = max(1, round(frame_seconds * codec.sample_rate / codec.min_length)) * multiple
    overlap = min(math.ceil(size * overlap_rate / multiple) * multiple, size - multiple) if overlap_rate > 0 else 0
    plan = ChunkPlan(prepared.shape[-1] // ratio, size, overlap, crossfade=True)

    def pass_through(part: Tensor) -> Tensor:
        return codec.decode(codec.encode(part), **decoding)

    with folded_weight_norm(codec):
        made = in_batches(pass_through, plan.split(prepared, ratio), 1.0, batch_size)
    return plan.join(made, ratio)[0, :, :length]


@dataclass(frozen=True)
class ReconstructionSettings:
    """How a folder is reconstructed; together with the source they decide what a file sounds like."""

    frame_duration: float = 1.0
    overlap_rate: float = 0.01
    batch_size: int = 20
    seed: int = 0  # of the noise that some bottlenecks add
    precision: str = "float32"
    format: str = "wav"
    bits: Bits = 16
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("frame_duration", self.frame_duration > 0, "more than 0 seconds"),
            ("overlap_rate", 0 <= self.overlap_rate < 1, "at least 0 and less than 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("seed", 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}"),
        ):
            if not holds:
                raise UserError(f"{name}: expected {allowed}, got {getattr(self, name)!r}")


Tell = Callable[[dict[str, Any]], None]


def reconstruct_folder(
    model: nn.Module,
    sources: Mapping[str, str],
    audio_dir: Path,
    output: OutputFolder,
    settings: ReconstructionSettings,
    device: torch.device,
    model_name: str = "",
    tell: Tell = lambda record: None,
) -> list[str]:
    """Reconstruct this process's share of `sources` (output file -> file below `audio_dir`) -> what failed, and why.

    `tell` gets the line of each file, whether it is new or was there.
    """
    mine = list(sources.items())[rank() :: world_size()]
    failed = []
    with progress_bar("reconstructing", len(mine)) as show:
        for number, (file, source) in enumerate(mine):
            show(number)
            wanted = _settings_of(audio_dir / source, source, settings, model_name)
            found = None if settings.overwrite else output.settings_of(file)
            if found is not None and found.items() >= wanted.items():
                tell(output.record(file, found))
                continue
            try:
                tell(_reconstruct_file(model, audio_dir / source, output, file, wanted, settings, device))
            except AudioError as error:
                failed.append(str(error))
                logger.warning("%s", error)
    return failed


def _reconstruct_file(
    model: nn.Module,
    source: Path,
    output: OutputFolder,
    file: str,
    wanted: dict[str, Any],
    settings: ReconstructionSettings,
    device: torch.device,
) -> dict[str, Any]:
    codec = codec_of(model)
    original, rate = audio_io.read(source, sample_rate=codec.sample_rate)
    if original.shape[-1] == 0:
        raise AudioError(f"{source}: holds no samples")
    # Noise of the bottleneck depends on the file alone, not on which process takes it.
    name = f"{settings.seed}/{wanted['source']}"
    stream = RandomStream(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big"), device)
    with stream.in_charge(), autocast(device, parse_dtype(settings.precision)):
        made = reconstruct(
            model,
            original,
            rate,
            device=device,
            frame_seconds=settings.frame_duration,
            overlap_rate=settings.overlap_rate,
            batch_size=settings.batch_size,
        )
    made = made.float().cpu()
    target = codec.preprocess_audio_for_encoder(original, rate)[0, :, : made.shape[-1]]
    measured = compare(made, target, rate)._asdict() if len(made) == len(target) else {}
    about = {**wanted, **{name: value if value is None else round(value, 4) for name, value in measured.items()}}
    return output.write(file, made / made.abs().max().clamp(min=1), rate, about, settings.bits)


def _settings_of(path: Path, source: str, settings: ReconstructionSettings, model_name: str) -> dict[str, Any]:
    about = path.stat()
    return {
        "source": source,
        "source_bytes": about.st_size,
        "model": model_name,
        "frame_duration": settings.frame_duration,
        "overlap_rate": settings.overlap_rate,
        "seed": settings.seed,
        "precision": settings.precision,
        "bits": settings.bits,
    }


def find_sources(audio_dir: Path, output_dir: Path, format: str) -> dict[str, str]:
    """Output file -> audio file, both relative and in the order of the scan; the tree of folders is kept.

    `a.mp3` becomes `a.wav`; where an `a.flac` is there too, they become `a.mp3.wav` and `a.flac.wav`.
    """
    if not audio_dir.is_dir():
        raise UserError(f"{audio_dir}: no such folder")
    inside = _below(output_dir, audio_dir)
    if inside == ".":
        raise UserError(f"{output_dir}: is the folder of the originals; choose another output folder")
    unreachable: list[Unreachable] = []
    found = [entry.name for entry in walk(audio_dir, SCANNED_EXTENSIONS, unreachable)]
    found = [name for name in found if inside is None or not name.startswith(f"{inside}/")]
    for missed in unreachable:
        logger.warning("%s: left out (%s)", missed.path, missed.reason)
    if not found:
        raise UserError(f"{audio_dir}: holds no audio files ({', '.join(SCANNED_EXTENSIONS)})")
    return _named(found, format)


def _named(sources: Sequence[str], format: str) -> dict[str, str]:
    short = {source: f"{PurePosixPath(source).with_suffix('')}.{format}" for source in sources}
    clashing = {file for pair in collisions(short.values()) for file in pair}
    named = {source: f"{source}.{format}" if file in clashing else file for source, file in short.items()}
    for one, other in collisions(named.values()):
        raise UserError(f"{one} and {other} would be one file; rename one of the originals")
    return {file: source for source, file in named.items()}


def _below(path: Path, root: Path) -> str | None:
    """`path` relative to `root`, None where it lies elsewhere."""
    whole, base = path.resolve(), root.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else None
