"""Generation of a plan: processes take whole batches in turn and communicate only through the output folder."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import content_digest, folder_lock
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import is_rank_zero, rank, world_size
from stable_audio_tools.core.seeds import draw_seed
from stable_audio_tools.inference.batch.outputs import OutputFolder
from stable_audio_tools.inference.batch.plan import Batch
from stable_audio_tools.inference.generation.checks import audio_conditions, file_seconds
from stable_audio_tools.inference.generation.editing import generate
from stable_audio_tools.inference.generation.model import AudioModel, Inspection, within_range
from stable_audio_tools.inference.generation.request import OPTIONS, Bits, GenerationRequest, Hooks

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any], bool], None]  # a line of the manifest, and whether the file is new

# The manifest lists these settings, which apply to other audio, under "edit".
_EDIT = ("mode", "audio", "to_audio", "noise_level", "spans", "seconds", "overlap", "crossfade")
_LENGTH = ("seconds", "whole_window")


def check_targets(batches: Sequence[Batch], output: OutputFolder, overwrite: bool = False) -> None:
    """Raise, before any work, if an existing file or folder blocks an output file."""
    output.check_place("manifest.jsonl")
    for file in [each.file for batch in batches for each in batch]:
        output.check_place(file)
        if not overwrite:
            output.settings_of(file)


def run_batch(
    model: AudioModel,
    batches: Sequence[Batch],
    output: OutputFolder,
    report: Report = lambda record, is_new: None,
    overwrite: bool = False,
    has_manifest: bool = True,
    inspection: Inspection | None = None,
) -> None:
    """Write the files of this process; complete files with the same settings are kept.

    A batch is written, and then reported, while the next one is generated.
    """
    mine = [batch for index, batch in enumerate(batches) if index % world_size() == rank()]
    if len(batches) < world_size():
        logger.info("%d batches for %d processes; a smaller --batch-size employs more", len(batches), world_size())
    is_shared = has_manifest and is_rank_zero()  # one lock for all processes of a run
    with folder_lock(output.path) if is_shared else contextlib.nullcontext():
        try:
            with ThreadPoolExecutor(1, "writing") as pool, progress_bar("generating", len(mine)) as show:
                writing: list[Future[dict[str, Any]]] = []
                try:
                    for number, batch in enumerate(mine):
                        writes = _run_one(model, batch, output, report, overwrite, show, number, inspection)
                        _report_written(writing, report)  # so at most two batches of audio are held
                        writing.extend(pool.submit(write) for write in writes)
                except Exception:
                    _report_written(writing, report)
                    raise
                _report_written(writing, report)
        finally:
            if has_manifest:
                output.write_manifest([each.file for batch in batches for each in batch])


def _report_written(writing: list[Future[dict[str, Any]]], report: Report) -> None:
    """Wait for files that are being written, report them, and empty the list."""
    while writing:
        report(writing.pop(0).result(), True)


def _run_one(
    model: AudioModel,
    batch: Batch,
    output: OutputFolder,
    report: Report,
    overwrite: bool,
    show: Callable[[float], None],
    number: int,
    inspection: Inspection | None,
) -> list[Callable[[], dict[str, Any]]]:
    """Generate the audio of a batch and report what is kept; return what writes each new file and gives its record."""
    also = inspection.settings if inspection is not None else {}
    wanted = [{**describe(model, each.request), **also} for each in batch]
    found = [None if overwrite else output.settings_of(each.file) for each in batch]
    is_kept = [
        old is not None
        and is_as_asked(old, new)
        and not (each.request.keep_latents and not output.has_latents(each.file))
        for each, old, new in zip(batch, found, wanted)
    ]
    for each, old, kept in zip(batch, found, is_kept):
        if old is not None and kept:
            report(output.record(each.file, old), False)
        elif old is not None:
            logger.info("%s has other settings and is generated again", each.file)
    if all(is_kept):
        return []
    latents: list[Tensor] = []
    requests = [
        replace(each.request, seed=draw_seed()) if each.request.seed in (None, -1) else each.request for each in batch
    ]
    hooks = Hooks(
        progress=lambda done, steps: show(number + (done / steps if steps else 0.0)),
        on_latents=latents.append if requests[0].keep_latents else None,
    )
    try:
        audio = generate(model.engine, requests, hooks)
    except ValueError as error:  # found only with the audio, such as spans beyond its end
        where = batch[0].file if requests[0].mode is None else f"mode {requests[0].mode}"
        raise UserError(f"{where}: {error}") from error
    writes: list[Callable[[], dict[str, Any]]] = []
    for index, (each, request) in enumerate(zip(batch, requests)):
        if is_kept[index]:
            continue
        seconds, about = file_seconds(request), {**wanted[index], "seed": request.seed}
        clip = audio[index] if seconds is None else audio[index][:, : round(seconds * model.sample_rate)]
        if not (request.keeps_level and request.bits == 32):
            clip = within_range(clip, request.keeps_level)
        if inspection is not None:
            clip, found_in_it = inspection(clip, model.sample_rate)
            about.update(found_in_it)
        encoded = latents[0][index] if latents else None
        writes.append(partial(_write, output, each.file, clip, model.sample_rate, about, request.bits, encoded))
    return writes


def _write(
    output: OutputFolder,
    file: str,
    clip: Tensor,
    sample_rate: int,
    about: Mapping[str, Any],
    bits: Bits,
    latents: Tensor | None,
) -> dict[str, Any]:
    """Write audio (c, n) and its latents; return the line of the manifest."""
    if latents is not None:  # before the audio file, which marks the item as complete
        output.write_latents(file, latents)
    return output.write(file, clip, sample_rate, about, bits)


def is_as_asked(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether a file has all the requested settings, and neither an adapter nor a check for copies besides.

    Files without a length in their settings were written when every file had the length of the window; they are
    complete.
    """
    if not any(name in old for name in _LENGTH):
        new = {name: value for name, value in new.items() if name not in _LENGTH}
    return old.items() >= new.items() and all(old.get(name) == new.get(name) for name in ("adapters", "copy_check"))


def describe(model: AudioModel, request: GenerationRequest) -> dict[str, Any]:
    """Return the settings of an item for its file and for the manifest."""
    settings = {
        name: _plain(getattr(request, name))
        for name, about in OPTIONS.items()
        if about.recorded and name not in _EDIT and not any(getattr(request, name) is empty for empty in (None, False))
    }
    if request.mode is not None:
        settings["edit"] = {name: _plain(getattr(request, name)) for name in _EDIT}
        settings["edit"]["match_loudness"] = not settings.pop("keep_level", False)
    if request.seed == -1:
        settings.pop("seed")
    sources = [*request.audio_sources.values(), *audio_conditions(request.conditions, model.facts).values()]
    settings = {
        "model": model.name,
        "weights": model.fingerprint,
        "precision": model.precision,
        "sampling_version": model.sampling_version,
        "adapters": model.describe_adapters() or None,
        **settings,
        "seconds": file_seconds(request),
        "whole_window": request.clip_length is False or None,
        "audio": {str(source): content_digest(str(source)) for source in sources} or None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _plain(value: Any) -> Any:
    """Convert a value to types of JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
