"""Checks of a dataset before training: every file is decoded, and every finding names its file."""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from stable_audio_tools.core.files import write_text
from stable_audio_tools.data.check_subjects import Problem, Subjects, Verdict, list_subjects
from stable_audio_tools.data.dataset import check_dataset_config
from stable_audio_tools.data.faults import whole_path
from stable_audio_tools.data.index import Header

Kind = Problem | Literal["duplicate", "split leak", "unusual rate", "unusual channels"]
_NOTES: frozenset[str] = frozenset({"unusual rate", "unusual channels"})  # informative, not a fault
_USELESS: frozenset[str] = frozenset({"unreadable", "short", "silent", "not finite", "duplicate"})
_EXAMPLES = 5  # of each kind, on a terminal
_AHEAD = 4  # files in memory for each thread, so that shards are not read faster than they are decoded

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Finding:
    """One finding about one file."""

    path: str
    kind: Kind
    detail: str


@dataclass
class CheckReport:
    """Totals and findings of a check."""

    files: int = 0
    seconds: float = 0.0
    links: int = 0  # further names of files already counted
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """There are files, and every finding is only a note."""
        return self.files > 0 and all(finding.kind in _NOTES for finding in self.findings)

    def counts(self) -> dict[str, int]:
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "ok": self.ok,
            "files": self.files,
            "seconds": self.seconds,
            "links": self.links,
            "sample_rates": {str(rate): count for rate, count in self.rates.most_common()},
            "channels": {str(channels): count for channels, count in self.channels.most_common()},
            "counts": self.counts(),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def write_quarantine(self, path: str | Path) -> int:
        """Write unusable files as a list for `quarantine_file` or `exclude_paths_file`; return their number."""
        useless = {finding.path: finding for finding in self.findings if finding.kind in _USELESS}
        lines = []
        for name, finding in useless.items():
            reason = f"{finding.kind}: {finding.detail}".replace("\n", " ")
            lines.append(f"{whole_path(name)}\t# {reason}")
        write_text(path, "".join(f"{line}\n" for line in lines))
        return len(useless)


def check_dataset(
    dataset_config: Mapping[str, Any],
    *,
    against: Mapping[str, Any] | None = None,
    sample_rate: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Decode every file of a dataset of audio; `against` is another split that must share no audio with it.

    `sample_rate` is the model's: files below it are noted. `progress(done, total)` is called for each finished file;
    `total` is None until the end for sources of unknown length.
    """
    report, threads = CheckReport(), workers or os.cpu_count() or 1
    first: dict[bytes, str] = {}
    headers: dict[str, dict[str, Header]] = defaultdict(dict)  # by source
    seen: set[str] = set()
    with ThreadPoolExecutor(threads) as pool:
        for verdict in _examine(list_subjects(check_dataset_config(dataset_config)), pool, threads, progress):
            real = os.path.realpath(verdict.path)
            if real in seen:
                report.links += 1
                continue
            seen.add(real)
            _enter(report, verdict)
            if verdict.header is not None:
                headers[verdict.source][verdict.path] = verdict.header
            earlier = first.setdefault(verdict.digest, verdict.path) if verdict.digest is not None else verdict.path
            if earlier != verdict.path:
                report.findings.append(Finding(verdict.path, "duplicate", f"the same audio as {earlier}"))
        if against is not None:
            for verdict in _examine(list_subjects(check_dataset_config(against)), pool, threads, progress):
                if verdict.digest in first:
                    detail = f"the same audio as {verdict.path}"
                    report.findings.append(Finding(first[verdict.digest], "split leak", detail))
    for of_source in headers.values():
        report.findings += _unusual(of_source, sample_rate)
    return report


def table(report: CheckReport) -> str:
    """Return the report for a terminal: what there is, how many findings of each kind, then a few of each."""
    rates = ", ".join(f"{rate} Hz" + _share(count, report.files) for rate, count in report.rates.most_common())
    channels = ", ".join(
        {1: "mono", 2: "stereo"}.get(number, f"{number} channels") + _share(count, report.files)
        for number, count in report.channels.most_common()
    )
    lines = [
        ", ".join(filter(None, (f"{report.files:,} files", f"{report.seconds / 3600:.2f} hours", rates, channels)))
    ]
    if report.links:
        lines.append(f"{report.links:,} links to files that are already counted")
    if not report.files:
        lines.append("no audio file was found")
    by_kind: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        by_kind[finding.kind].append(finding)
    kinds = sorted(by_kind, key=lambda kind: (kind in _NOTES, -len(by_kind[kind])))
    lines += [f"{kind}: {len(by_kind[kind]):,}" + (" (a note)" if kind in _NOTES else "") for kind in kinds]
    if report.ok:
        lines.append("no problems were found")
    for kind in kinds:
        lines += ["", f"{kind}:"]
        lines += [f"  {finding.path}: {finding.detail}" for finding in by_kind[kind][:_EXAMPLES]]
        if (more := len(by_kind[kind]) - _EXAMPLES) > 0:
            lines.append(f"  and {more:,} more; --json lists them all")
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    return "" if count == total else f" ({count:,})"


def _examine(
    subjects: Subjects, pool: ThreadPoolExecutor, threads: int, progress: Progress | None
) -> Iterator[Verdict]:
    """Yield verdicts in the order of the files, while some of them are decoded in parallel."""
    waiting: deque[Future[Verdict]] = deque()
    done = 0
    more = True
    while more or waiting:
        examination = next(subjects.examinations, None) if more else None
        more = examination is not None
        if examination is not None:
            waiting.append(pool.submit(examination))
        if waiting and (not more or len(waiting) > _AHEAD * threads):
            yield waiting.popleft().result()
            done += 1
            if progress is not None:
                progress(done, subjects.count)


def _enter(report: CheckReport, verdict: Verdict) -> None:
    report.files += 1
    report.findings += [Finding(verdict.path, kind, detail) for kind, detail in verdict.problems]
    if verdict.header is not None:
        report.seconds += verdict.header.frames / verdict.header.sample_rate
        report.rates[verdict.header.sample_rate] += 1
        report.channels[verdict.header.channels] += 1


def _unusual(headers: Mapping[str, Header], sample_rate: int | None) -> Iterator[Finding]:
    """Yield a note for each file of one source that differs from the others of it, or is below the model's rate."""
    usual = Counter(rate for _, rate, _ in headers.values()).most_common(1)[0][0]
    for path, (_, rate, channels) in headers.items():
        if sample_rate is not None and rate < sample_rate:
            yield Finding(path, "unusual rate", f"{rate} Hz is below the model's {sample_rate} Hz")
        elif sample_rate is None and rate != usual:
            yield Finding(path, "unusual rate", f"{rate} Hz, where most have {usual} Hz")
        if channels > 2:
            yield Finding(path, "unusual channels", f"{channels} channels; training uses the first ones")
