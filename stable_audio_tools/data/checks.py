"""What is wrong with a dataset, before it is trained on: every file is decoded, and every finding names its file."""

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.config.errors import AudioError, ConfigError
from stable_audio_tools.config.parts import Part
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import check_dataset_config
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.index import FileIndex, index_folder
from stable_audio_tools.data.metadata import Table, read_sidecar
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.data.prompts import add_prompt
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS
from stable_audio_tools.data.sources.audio_dir import SHORTEST_SECONDS, describe_audio, index_kind
from stable_audio_tools.data.transforms import SILENCE
from stable_audio_tools.system.files import write_text

Kind = Literal[
    "unreadable",
    "short",
    "silent",
    "not finite",
    "clipped",
    "bad metadata",
    "missing caption",
    "duplicate",
    "split leak",
    "unusual rate",
    "unusual channels",
]
_NOTES: frozenset[str] = frozenset({"unusual rate", "unusual channels"})  # worth knowing, nothing wrong
_USELESS: frozenset[str] = frozenset({"unreadable", "short", "silent", "not finite", "duplicate"})
_FULL_SCALE = 0.9999
_CLIPPED_RUN = 3  # samples in a row at full scale: a peak may touch it once or twice
_CLIPPED_FRACTION = 1e-4


@dataclass(frozen=True)
class Finding:
    """One thing to know of one file."""

    path: str
    kind: Kind
    detail: str


@dataclass
class CheckReport:
    """What was looked at, and what was found."""

    files: int = 0
    seconds: float = 0.0
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Is nothing wrong?"""
        return self.files > 0 and all(finding.kind in _NOTES for finding in self.findings)

    def counts(self) -> dict[str, int]:
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "files": self.files,
            "seconds": self.seconds,
            "sample_rates": {str(rate): count for rate, count in self.rates.most_common()},
            "channels": {str(channels): count for channels, count in self.channels.most_common()},
            "counts": self.counts(),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def write_quarantine(self, path: str | Path) -> int:
        """Write the files that are of no use as a list for `quarantine_file` or `exclude_paths_file` -> how many."""
        useless = {finding.path: finding for finding in self.findings if finding.kind in _USELESS}
        lines = []
        for name, finding in useless.items():
            reason = f"{finding.kind}: {finding.detail}".replace("\n", " ")
            lines.append(f"{os.path.normpath(Path(name).absolute())}\t# {reason}")
        write_text(path, "".join(f"{line}\n" for line in lines))
        return len(useless)


@dataclass(frozen=True)
class _Entry:
    index: FileIndex
    rows: list[int]
    table: Table | None
    has_code: bool


class _Heard(NamedTuple):
    """What decoding one file told."""

    path: str
    problems: list[Finding]
    digest: bytes | None


def check_dataset(
    dataset_config: Mapping[str, Any],
    *,
    against: Mapping[str, Any] | None = None,
    sample_rate: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Decode every file of an `audio_dir` config; `against` is another split that must share no audio with it.

    `sample_rate` is the model's: files below it are noted. `progress(done, all)` is called as files are finished.
    """
    part, report = _audio_part(dataset_config), CheckReport()
    entries = list(_entries(part, report))
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        first: dict[bytes, str] = {}
        for heard in _listen(part, entries, pool, progress):
            report.findings += heard.problems
            if heard.digest is not None:
                earlier = first.setdefault(heard.digest, heard.path)
                if earlier != heard.path:
                    report.findings.append(Finding(heard.path, "duplicate", f"the same audio as {earlier}"))
        if against is not None:
            other = _audio_part(against)
            for heard in _listen(other, list(_entries(other, CheckReport())), pool, progress):
                if heard.digest in first:
                    report.findings.append(
                        Finding(first[heard.digest], "split leak", f"the same audio as {heard.path}")
                    )
    report.findings += _unusual(entries, report, sample_rate)
    return report


def table(report: CheckReport) -> str:
    """The report for a terminal."""
    lines = [f"{report.files:,} files, {report.seconds / 3600:.2f} hours"]
    if not report.files:
        lines.append("no audio file was found")
    by_kind: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        by_kind[finding.kind].append(finding)
    for kind, findings in by_kind.items():
        lines.append(f"{kind}: {len(findings)}")
        lines += [f"  {finding.path}: {finding.detail}" for finding in findings]
    return "\n".join([*lines, "nothing is wrong" if report.ok else ""]).rstrip()


def _audio_part(config: Mapping[str, Any]) -> Part:
    part = check_dataset_config(config)
    if part.type != "audio_dir":
        raise ConfigError(f"dataset.dataset_type: check-data looks at 'audio_dir', got {part.type!r}")
    return part


def _entries(part: Part, report: CheckReport) -> Iterator[_Entry]:
    config = part.config
    paths = PathFilter(
        config.exclude_paths_file, config.include_paths_file, config.quarantine_file, config.loose_path_matching
    )
    for folder in config.datasets:
        entry = folder.as_config(config.custom_metadata_module)
        if not Path(entry.path).is_dir():
            raise ConfigError(f"dataset {entry.id!r}: path {entry.path} is not a folder")
        index = index_folder(entry.path, SCANNED_EXTENSIONS, describe_audio, index_kind())
        for path, reason, is_file in index.unreachable:
            report.files += is_file
            report.findings.append(Finding(path, "unreadable", reason))
        rows = [r for r in range(len(index.names)) if paths.keeps([(index.path(r), index.names[r])], entry.id)]
        _count(report, index, rows)
        listed = Table(entry.metadata_path, entry.path, index.names) if entry.metadata_path else None
        yield _Entry(index, rows, listed, entry.custom_metadata_fn is not None)
    paths.report()


def _count(report: CheckReport, index: FileIndex, rows: Sequence[int]) -> None:
    report.files += len(rows)
    for row in rows:
        if row not in index.reasons:
            report.seconds += float(index.frames[row] / index.rates[row])
            report.rates[int(index.rates[row])] += 1
            report.channels[int(index.channels[row])] += 1


def _listen(
    part: Part, entries: Sequence[_Entry], pool: ThreadPoolExecutor, progress: Callable[[int, int], None] | None
) -> Iterator[_Heard]:
    jobs = [(entry, row) for entry in entries for row in entry.rows]
    for done, heard in enumerate(pool.map(lambda job: _examine(part, *job), jobs), 1):
        if progress is not None:
            progress(done, len(jobs))
        yield heard


def _examine(part: Part, entry: _Entry, row: int) -> _Heard:
    path = entry.index.path(row)
    if row in entry.index.reasons:
        return _Heard(path, [Finding(path, "unreadable", entry.index.reasons[row])], None)
    problems = list(_caption_problems(part, entry, row, path))
    try:
        found, digest = _hear(path, int(entry.index.rates[row]))
    except AudioError as error:
        return _Heard(path, [*problems, Finding(path, "unreadable", str(error).removeprefix(f"{path}: "))], None)
    return _Heard(path, [*problems, *(Finding(path, kind, detail) for kind, detail in found)], digest)


def _caption_problems(part: Part, entry: _Entry, row: int, path: str) -> Iterator[Finding]:
    try:
        info = read_sidecar(path)
    except BadItem as error:
        yield Finding(path, "bad metadata", error.detail)
        return
    if entry.table is not None:
        info.update(entry.table.row(row, 0))
    add_prompt(info, part.config.captions, random.Random(0))
    if not entry.has_code and not isinstance(info.get("prompt"), str):
        yield Finding(path, "missing caption", "no .json or .txt beside it, and no row in a table, gives a prompt")


def _hear(path: str, rate: int) -> tuple[list[tuple[Kind, str]], bytes]:
    """(what is wrong with the sound, hash of the samples)."""
    digest, peak, samples, clipped, frames = blake2b(str(rate).encode(), digest_size=16), 0.0, 0, 0, 0
    for block in audio_io.blocks(path):
        digest.update(block.tobytes())
        level = np.abs(block)
        peak = max(peak, float(level.max())) if np.isfinite(level.max()) else float("nan")
        if np.isnan(peak):
            return [("not finite", "holds NaN or infinite samples")], digest.digest()
        samples, frames, clipped = samples + block.size, frames + len(block), clipped + _in_runs(level >= _FULL_SCALE)
    problems: list[tuple[Kind, str]] = []
    if frames < SHORTEST_SECONDS * rate:
        problems.append(("short", f"{frames} samples"))
    elif peak < SILENCE:
        problems.append(("silent", "below -60 dB throughout"))
    if clipped > _CLIPPED_FRACTION * samples:
        problems.append(("clipped", f"{100 * clipped / samples:.2f} % of its samples lie at full scale in runs"))
    return problems, digest.digest()


def _in_runs(marked: NDArray[np.bool_]) -> int:
    """How many marked samples begin a run of `_CLIPPED_RUN`, over all channels."""
    if len(marked) < _CLIPPED_RUN or not marked.any():
        return 0
    starts = marked[: len(marked) - _CLIPPED_RUN + 1].copy()
    for shift in range(1, _CLIPPED_RUN):
        starts &= marked[shift : len(starts) + shift]
    return int(starts.sum())


def _unusual(entries: Sequence[_Entry], report: CheckReport, sample_rate: int | None) -> Iterator[Finding]:
    usual: Sequence[tuple[int, int]] = report.rates.most_common(1)
    for entry in entries:
        for row in entry.rows:
            if row in entry.index.reasons:
                continue
            path, rate, channels = entry.index.path(row), int(entry.index.rates[row]), int(entry.index.channels[row])
            if sample_rate is not None and rate < sample_rate:
                yield Finding(path, "unusual rate", f"{rate} Hz is below the model's {sample_rate} Hz")
            elif sample_rate is None and usual and rate != usual[0][0]:
                yield Finding(path, "unusual rate", f"{rate} Hz, where most have {usual[0][0]} Hz")
            if channels > 2:
                yield Finding(path, "unusual channels", f"{channels} channels; training uses the first ones")
