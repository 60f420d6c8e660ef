"""The files that a dataset check examines, from folders, tar shards and Arrow datasets, in one form."""

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config.parts import Part
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.custom_metadata import ItemInfo
from stable_audio_tools.data.faults import BadItem, Fault
from stable_audio_tools.data.index import FileIndex, Header, index_folder
from stable_audio_tools.data.metadata import Table, read_sidecar
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.prompts import Captions, add_prompt
from stable_audio_tools.data.scanning import ALREADY_INCLUDED, SCANNED_EXTENSIONS
from stable_audio_tools.data.sources.audio_dir import SHORTEST_SECONDS, describe_audio, index_kind
from stable_audio_tools.data.sources.request import LoaderRequest
from stable_audio_tools.data.sources.tar_items import Content
from stable_audio_tools.data.streaming import StreamLoader
from stable_audio_tools.data.transforms import SILENCE

Flaw = Literal["short", "silent", "not finite", "clipped"]


Problem = Literal["unreadable", "bad metadata", "missing caption"] | Flaw
_ANY_RATE = 44_100  # a check decodes at the file's own rate


class Verdict(NamedTuple):
    """The findings about one file."""

    path: str
    problems: list[tuple[Problem, str]]
    header: Header | None  # None if unreadable
    digest: bytes | None  # of the samples; None if they cannot be decoded
    source: str = ""  # folder of the dataset

    @classmethod
    def unreadable(cls, path: str, reason: str) -> "Verdict":
        return cls(path, [("unreadable", reason.removeprefix(f"{path}: "))], None, None)


@dataclass(frozen=True)
class Subjects:
    """The files to examine; each call decodes one, in any thread."""

    count: int | None  # None if unknown until the end
    examinations: Iterator[Callable[[], Verdict]]


def list_subjects(part: Part) -> Subjects:
    """Return the files of a dataset config."""
    if part.type == "audio_dir":
        return _in_folders(part)
    if part.facts.get("holds", "audio") == "audio":
        return _packed(part)
    raise ConfigError(f"dataset.dataset_type: check-data decodes audio, but {part.type!r} holds latents")


# ------------------------------------------------------------------ folders


@dataclass(frozen=True)
class _Folder:
    index: FileIndex
    rows: list[int]
    table: Table | None
    has_code: bool


def _in_folders(part: Part) -> Subjects:
    config = part.config
    paths = PathFilter(
        config.exclude_paths_file, config.include_paths_file, config.quarantine_file, config.loose_path_matching
    )
    folders = [_scan(folder.as_config(config.custom_metadata_module), paths) for folder in config.datasets]
    paths.report()
    lost = [
        (path, reason)
        for folder in folders
        for path, reason, _ in folder.index.unreachable
        if reason != ALREADY_INCLUDED
    ]

    def examinations() -> Iterator[Callable[[], Verdict]]:
        for path, reason in lost:
            yield partial(Verdict.unreadable, path, reason)
        for folder in folders:
            for row in folder.rows:
                yield partial(_examine_file, folder, row, config.captions)

    return Subjects(len(lost) + sum(len(folder.rows) for folder in folders), examinations())


def _scan(entry: Any, paths: PathFilter) -> _Folder:
    if not Path(entry.path).is_dir():
        raise ConfigError(f"dataset {entry.id!r}: path {entry.path} is not a folder")
    index = index_folder(entry.path, SCANNED_EXTENSIONS, describe_audio, index_kind())
    table = Table(entry.metadata_path, entry.path, index.names) if entry.metadata_path else None
    used = table.listed() if table is not None and entry.only_listed else [True] * len(index.names)
    rows = [row for row, use in enumerate(used) if use and paths.keeps([(index.path(row), index.names[row])], entry.id)]
    return _Folder(index, rows, table, entry.custom_metadata_fn is not None)


def _examine_file(folder: _Folder, row: int, captions: Captions) -> Verdict:
    index, path = folder.index, folder.index.path(row)
    if row in index.reasons:
        return Verdict.unreadable(path, index.reasons[row])
    header = Header(int(index.frames[row]), int(index.rates[row]), int(index.channels[row]))
    try:
        info = read_sidecar(path)
        if folder.table is not None:
            info.update(folder.table.row(row, 0))
        problems = list(_caption_problems(info, captions, folder.has_code))
    except BadItem as error:
        problems = [("bad metadata", error.detail)]
    return _listen(path, path, header, problems)._replace(source=str(index.root))


# ------------------------------------------------------------------ shards and tables


def _packed(part: Part) -> Subjects:
    loader = part.build(request=LoaderRequest(1, 1, _ANY_RATE, shuffle=False))
    source: Any = loader.source if isinstance(loader, StreamLoader) else loader.dataset
    captions = part.config.captions
    return Subjects(source.num_items, (partial(_examine_content, found, captions) for found in source.contents()))


def _examine_content(found: Content | Fault, captions: Captions) -> Verdict:
    if isinstance(found, Fault):
        kind: Problem = "bad metadata" if found.kind == "bad metadata" else "unreadable"
        return Verdict(found.path, [(kind, found.detail)], None, None)
    problems = list(_caption_problems(found.info, captions, found.has_code))
    if isinstance(found.data, Path):
        return _listen_to_copy(found.path, found.data, problems)
    with tempfile.TemporaryDirectory(prefix="stable_audio_tools_") as folder:
        file = Path(folder, f"audio.{found.suffix.rpartition('.')[2]}")
        file.write_bytes(found.data)
        return _listen_to_copy(found.path, file, problems)


def _listen_to_copy(path: str, file: Path, problems: list[tuple[Problem, str]]) -> Verdict:
    try:
        header = describe_audio(file)
    except AudioError as error:
        return Verdict(path, [*problems, ("unreadable", str(error).removeprefix(f"{file}: "))], None, None)
    return _listen(path, str(file), header, problems)


# ------------------------------------------------------------------ both


def _listen(path: str, file: str, header: Header, problems: list[tuple[Problem, str]]) -> Verdict:
    try:
        report = examine_audio(file, header.sample_rate)
    except AudioError as error:
        return Verdict(path, [*problems, ("unreadable", str(error).removeprefix(f"{file}: "))], header, None)
    return Verdict(path, [*problems, *report.flaws], header, report.digest)


def _caption_problems(info: ItemInfo, captions: Captions, has_code: bool) -> Iterator[tuple[Problem, str]]:
    add_prompt(info, captions, random.Random(0))
    if not has_code and not isinstance(info.get("prompt"), str):
        yield "missing caption", "no prompt in a .json or .txt file beside it or in a metadata table"


_FULL_SCALE = 0.9999
_CLIPPED_RUN = 3  # consecutive samples at full scale; a peak may touch it once or twice
_CLIPPED_FRACTION = 1e-4


class AudioReport(NamedTuple):
    """The flaws of one decoded file, and a digest of its samples."""

    flaws: list[tuple[Flaw, str]]
    digest: bytes  # of the samples and their rate


def examine_audio(path: str | Path, rate: int) -> AudioReport:
    """Decode a file of `rate` Hz to its end; raise AudioError if that fails."""
    digest, peak, samples, clipped, frames = blake2b(str(rate).encode(), digest_size=16), 0.0, 0, 0, 0
    for block in audio_io.blocks(path):
        digest.update(block.tobytes())
        level = np.abs(block)
        peak = max(peak, float(level.max())) if np.isfinite(level.max()) else float("nan")
        if np.isnan(peak):
            return AudioReport([("not finite", "holds NaN or infinite samples")], digest.digest())
        samples, frames, clipped = samples + block.size, frames + len(block), clipped + _in_runs(level >= _FULL_SCALE)
    flaws: list[tuple[Flaw, str]] = []
    if frames < SHORTEST_SECONDS * rate:
        flaws.append(("short", f"{frames} samples"))
    elif peak < SILENCE:
        flaws.append(("silent", "below -60 dB throughout"))
    if clipped > _CLIPPED_FRACTION * samples:
        flaws.append(("clipped", f"{100 * clipped / samples:.2f} % of its samples are at full scale in runs"))
    return AudioReport(flaws, digest.digest())


def _in_runs(marked: NDArray[np.bool_]) -> int:
    """Count the marked samples that begin a run of `_CLIPPED_RUN`, over all channels."""
    if len(marked) < _CLIPPED_RUN or not marked.any():
        return 0
    starts = marked[: len(marked) - _CLIPPED_RUN + 1].copy()
    for shift in range(1, _CLIPPED_RUN):
        starts &= marked[shift : len(starts) + shift]
    return int(starts.sum())
