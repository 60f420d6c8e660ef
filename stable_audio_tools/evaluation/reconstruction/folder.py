"""Reconstruction of a folder of audio by an autoencoder, and the error of each file."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.devices import autocast, parse_dtype
from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.files import content_digest
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS, Unreachable, walk
from stable_audio_tools.data.transforms import SILENCE
from stable_audio_tools.evaluation.reconstruction.metrics import compare
from stable_audio_tools.evaluation.settings import ReconstructionSettings
from stable_audio_tools.inference.batch.outputs import OutputFolder, collisions, format_problems
from stable_audio_tools.inference.generation.model import AudioModel, within_range
from stable_audio_tools.inference.generation.reconstruction import codec_of, reconstruct
from stable_audio_tools.inference.sampling.randomness import RandomStream

logger = logging.getLogger(__name__)

Report = Callable[[JsonObject, bool], None]  # record of a file, and whether it is new


def reconstruct_folder(
    model: AudioModel,
    sources: Mapping[str, str],
    audio_dir: Path,
    output: OutputFolder,
    settings: ReconstructionSettings,
    report: Report = lambda record, is_new: None,
) -> list[str]:
    """Reconstruct this process's share of `sources` (output file -> file below `audio_dir`); return the errors.

    An existing file is kept if it has the same source and settings.
    """
    for problem in format_problems(settings.format, settings.bits, codec_of(model.module).sample_rate):
        raise UserError(problem)
    mine = list(sources.items())[rank() :: world_size()]
    failed = []
    with progress_bar("reconstructing", len(mine)) as show:
        for number, (file, source) in enumerate(mine):
            show(number)
            try:
                expected = _file_settings(model, audio_dir / source, source, settings)
                stored = None if settings.overwrite else output.settings_of(file)
                if stored is not None and stored.items() >= expected.items():
                    report(output.record(file, stored), False)
                else:
                    report(_reconstruct_file(model, audio_dir / source, output, file, expected, settings), True)
            except AudioError as error:
                failed.append(str(error))
                logger.warning("%s", error)
    return failed


def _reconstruct_file(
    model: AudioModel,
    source: Path,
    output: OutputFolder,
    file: str,
    expected: Mapping[str, object],
    settings: ReconstructionSettings,
) -> JsonObject:
    codec = codec_of(model.module)
    original, rate = audio_io.read(source, sample_rate=codec.sample_rate)
    if original.shape[-1] == 0:
        raise AudioError(f"{source}: contains no samples")
    # The noise of a bottleneck depends on the file alone, not on the process.
    name = f"{settings.seed}/{expected['source']}"
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
    with RandomStream(seed, model.device).in_charge(), autocast(model.device, parse_dtype(model.precision)):
        decoded = reconstruct(
            model.module,
            original,
            rate,
            device=model.device,
            frame_seconds=settings.frame_duration,
            overlap_rate=settings.overlap_rate,
            batch_size=settings.batch_size,
        )
    decoded = decoded.float().cpu()
    target = codec.preprocess_audio_for_encoder(original, rate)[0, :, : decoded.shape[-1]]
    measured: JsonObject = compare(decoded, target, rate)._asdict() if len(decoded) == len(target) else {}
    if float(target.abs().max()) < SILENCE:
        measured["silent"] = True
    record = {
        **expected,
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in measured.items()},
    }
    return output.write(file, within_range(decoded), rate, record, settings.bits)


def _file_settings(model: AudioModel, path: Path, source: str, settings: ReconstructionSettings) -> dict[str, object]:
    """Return the settings that the comment of an output file records."""
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
    """Map output files to audio files, both relative and in the order of the scan; subfolders are preserved.

    `a.mp3` becomes `a.wav`; if there is also an `a.flac`, they become `a.mp3.wav` and `a.flac.wav`.
    """
    if not audio_dir.is_dir():
        raise UserError(f"{audio_dir}: no such folder")
    output, root = output_dir.resolve(), audio_dir.resolve()
    inside = output.relative_to(root).as_posix() if output.is_relative_to(root) else None
    if inside == ".":
        raise UserError(f"{output_dir}: this is the folder of the originals; choose another output folder")
    unreachable: list[Unreachable] = []
    found = [entry.name for entry in walk(audio_dir, SCANNED_EXTENSIONS, unreachable)]
    found = [name for name in found if inside is None or not name.startswith(f"{inside}/")]
    for missed in unreachable:
        logger.warning("%s: skipped (%s)", missed.path, missed.reason)
    if not found:
        raise UserError(f"{audio_dir}: contains no audio files ({', '.join(SCANNED_EXTENSIONS)})")
    return _named(found, format)


def _named(sources: Sequence[str], format: str) -> dict[str, str]:
    short = {source: f"{PurePosixPath(source).with_suffix('')}.{format}" for source in sources}
    clashing = {file for pair in collisions(short.values()) for file in pair}
    named = {source: f"{source}.{format}" if file in clashing else file for source, file in short.items()}
    for one, other in collisions(named.values()):
        raise UserError(f"{one} and {other} would have the same output file; rename one of the originals")
    return {file: source for source, file in named.items()}
