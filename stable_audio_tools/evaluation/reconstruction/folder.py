"""A folder of audio through an autoencoder and back, and how close each file came."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stable_audio_tools.core.devices import autocast, parse_dtype
from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.files import content_digest
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS, Unreachable, walk
from stable_audio_tools.evaluation.reconstruction.metrics import compare
from stable_audio_tools.evaluation.settings import ReconstructionSettings
from stable_audio_tools.inference.batch.outputs import OutputFolder, collisions, format_problems
from stable_audio_tools.inference.generation.model import AudioModel, within_range
from stable_audio_tools.inference.generation.reconstruction import codec_of, reconstruct
from stable_audio_tools.inference.sampling.randomness import RandomStream

logger = logging.getLogger(__name__)


Tell = Callable[[dict[str, Any], bool], None]  # the line of a file, and whether it is new


def reconstruct_folder(
    model: AudioModel,
    sources: Mapping[str, str],
    audio_dir: Path,
    output: OutputFolder,
    settings: ReconstructionSettings,
    tell: Tell = lambda record, is_new: None,
) -> list[str]:
    """Reconstruct this process's share of `sources` (output file -> file below `audio_dir`) -> what failed, and why.

    A file that is there is kept where it was made in the same way from the same source.
    """
    for problem in format_problems(settings.format, settings.bits, codec_of(model.module).sample_rate):
        raise UserError(problem)
    mine = list(sources.items())[rank() :: world_size()]
    failed = []
    with progress_bar("reconstructing", len(mine)) as show:
        for number, (file, source) in enumerate(mine):
            show(number)
            try:
                wanted = _told(model, audio_dir / source, source, settings)
                found = None if settings.overwrite else output.settings_of(file)
                if found is not None and found.items() >= wanted.items():
                    tell(output.record(file, found), False)
                else:
                    tell(_reconstruct_file(model, audio_dir / source, output, file, wanted, settings), True)
            except AudioError as error:
                failed.append(str(error))
                logger.warning("%s", error)
    return failed


def _reconstruct_file(
    model: AudioModel,
    source: Path,
    output: OutputFolder,
    file: str,
    wanted: Mapping[str, Any],
    settings: ReconstructionSettings,
) -> dict[str, Any]:
    codec = codec_of(model.module)
    original, rate = audio_io.read(source, sample_rate=codec.sample_rate)
    if original.shape[-1] == 0:
        raise AudioError(f"{source}: holds no samples")
    # The noise of a bottleneck depends on the file alone, not on which process takes it.
    name = f"{settings.seed}/{wanted['source']}"
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
    with RandomStream(seed, model.device).in_charge(), autocast(model.device, parse_dtype(model.precision)):
        made = reconstruct(
            model.module,
            original,
            rate,
            device=model.device,
            frame_seconds=settings.frame_duration,
            overlap_rate=settings.overlap_rate,
            batch_size=settings.batch_size,
        )
    made = made.float().cpu()
    target = codec.preprocess_audio_for_encoder(original, rate)[0, :, : made.shape[-1]]
    measured = compare(made, target, rate)._asdict() if len(made) == len(target) else {}
    about = {**wanted, **{name: value if value is None else round(value, 4) for name, value in measured.items()}}
    return output.write(file, within_range(made), rate, about, settings.bits)


def _told(model: AudioModel, path: Path, source: str, settings: ReconstructionSettings) -> dict[str, Any]:
    """How a file is made, for its comment."""
    try:
        size, digest = path.stat().st_size, content_digest(path)
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror})") from None
    return {
        "source": source,
        "source_bytes": size,
        "source_digest": digest,
        "model": model.name,
        "weights": model.fingerprint,
        "precision": model.precision,
        "frame_duration": settings.frame_duration,
        "overlap_rate": settings.overlap_rate,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
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
