"""Building an index of recordings, and searching it: for files, or for copies among its own recordings."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.core.gathering import all_processes
from stable_audio_tools.core.pages import Markup, html_page, player, table
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import is_rank_zero, rank, world_size
from stable_audio_tools.dedup.copies import single_link
from stable_audio_tools.dedup.outputs import write_excluded, write_failures, write_json, write_lines
from stable_audio_tools.dedup.passages.index import IndexedTrack, PassageIndex, build, read_for_landmarks
from stable_audio_tools.dedup.passages.landmarks import SAMPLE_RATE, Peaks, find_peaks
from stable_audio_tools.dedup.passages.matches import Match, by_track, classify, same_peaks
from stable_audio_tools.dedup.passages.search import find_passages
from stable_audio_tools.dedup.passages.settings import FindSettings, IndexSettings
from stable_audio_tools.dedup.store import Failure
from stable_audio_tools.dedup.tracks import Track, choose_kept, tracks_of_config, tracks_of_folders

_COLUMNS = (
    "query", "track", "kind", "start", "end", "track_start", "track_end", "speed", "semitones", "agreement", "hits",
)  # fmt: skip
_WHOLE_COPIES = ("exact", "re-encoded", "altered")


@dataclass(frozen=True)
class FindOutcome:
    """Result of a search."""

    matches: list[Match]
    failures: list[Failure]
    excluded: list[Track]


def build_index(settings: IndexSettings) -> list[Failure]:
    """Add the recordings of a dataset to an index; each process adds its share. Return what could not be read."""
    extensions = [f".{name.strip().lstrip('.')}" for name in settings.extensions.split(",") if name.strip()]
    if settings.dataset_config:
        tracks = tracks_of_config(settings.dataset_config, extensions)
    else:
        tracks = tracks_of_folders(settings.dataset_dir, extensions)
    if is_rank_zero():
        PassageIndex.create(settings.index, settings.sampling)
    with all_processes() as gather:
        gather(None)  # the folder exists
        share = tracks[: settings.limit][rank() :: world_size()]
        failures = []
        with progress_bar("indexing", len(share)) as show:
            workers = settings.num_workers or os.cpu_count() or 1
            for done, failure in enumerate(build(settings.index, share, settings.sampling, workers), 1):
                failures += [failure] if failure else []
                show(done)
        return sorted(failure for found in gather(failures) for failure in found)


def find_copies(settings: FindSettings) -> FindOutcome:
    """Search the index and write lists, a table and a page."""
    index = PassageIndex(settings.index)
    if not len(index):
        raise ConfigError(f"{settings.index}: holds no recording; add some with `dedup index`")
    failures: list[Failure] = []
    if settings.audio:
        matches = _search_files(index, settings, failures)
    else:
        matches = _search_within(index, settings)
    tracks = {track.name: track.as_track() for track in index.tracks}
    excluded = [] if settings.audio else choose_excluded(matches, tracks, settings)
    write_matches(settings, matches)
    write_failures(settings.output_dir / "failed_files.json", failures)
    if not settings.audio:
        header = f"{len(excluded)} files to exclude: {', '.join(settings.exclude)}"
        place = settings.output_dir / "exclude_paths.txt"
        write_excluded(place, excluded, list(tracks.values()), settings.exclude_path_format, header)
    return FindOutcome(matches, failures, excluded)


# ------------------------------------------------------------------ queries


def _search_within(index: PassageIndex, settings: FindSettings) -> list[Match]:
    """Compare every recording of the index with those that follow it."""
    matches: list[Match] = []
    with progress_bar("searching", len(index)) as show:
        for number, query in enumerate(index.tracks):
            peaks = index.peaks(number)
            matches += _matches_of(index, query, peaks, settings, range(number + 1, len(index)))
            show(number + 1)
    return matches


def _search_files(index: PassageIndex, settings: FindSettings, failures: list[Failure]) -> list[Match]:
    paths = list(_audio_files(settings))
    matches: list[Match] = []

    def analyse(path: Path) -> tuple[float, Peaks] | AudioError:
        try:
            audio = read_for_landmarks(path)
        except AudioError as error:
            return error
        return len(audio) / SAMPLE_RATE, find_peaks(audio)

    with (
        progress_bar("searching", len(paths)) as show,
        ThreadPoolExecutor(settings.num_workers or os.cpu_count() or 1) as pool,
    ):
        for done, (path, result) in enumerate(zip(paths, pool.map(analyse, paths)), 1):
            if isinstance(result, AudioError):
                failures.append(Failure(str(path), type(result).__name__, str(result).removeprefix(f"{path}: ")))
            else:
                seconds, peaks = result
                about = path.stat()
                query = IndexedTrack(str(path), str(path.absolute()), about.st_size, about.st_mtime_ns, seconds)
                matches += _matches_of(index, query, peaks, settings, range(len(index)))
            show(done)
    return matches


def _audio_files(settings: FindSettings) -> Iterator[Path]:
    extensions = {f".{name.strip().lstrip('.').lower()}" for name in settings.extensions.split(",")}
    for place in settings.audio:
        if place.is_dir():
            found = sorted(path for path in place.rglob("*") if path.suffix.lower() in extensions and path.is_file())
            if not found:
                raise ConfigError(f"--audio {place}: no audio file with extension {', '.join(sorted(extensions))}")
            yield from found
        elif place.is_file():
            yield place
        else:
            raise ConfigError(f"--audio {place}: no such file or folder")


def _matches_of(
    index: PassageIndex,
    query: IndexedTrack,
    peaks: Peaks,
    settings: FindSettings,
    numbers: range,
) -> Iterator[Match]:
    for number, passages in by_track(find_passages(index, peaks, settings.least_agreement, settings.least_seconds)):
        if number in numbers:
            yield classify(query, index.track(number), passages, same_peaks(peaks, index.peaks(number)))


# ------------------------------------------------------------------ outputs


def choose_excluded(matches: Sequence[Match], tracks: dict[str, Track], settings: FindSettings) -> list[Track]:
    """Return the files to exclude: of whole copies all but one of each group, and excerpts where they are asked for."""
    names = list(tracks)
    numbers = {name: number for number, name in enumerate(names)}
    pairs = [
        (numbers[match.query.name], numbers[match.track.name])
        for match in matches
        if match.kind in settings.exclude and match.kind in _WHOLE_COPIES
    ]
    excluded = set()
    for group in single_link(len(names), pairs):
        members = [tracks[names[number]] for number in group]
        excluded |= {*members} - {choose_kept(members, settings.keep)}
    if "excerpt" in settings.exclude:
        excluded |= {tracks[match.excerpt.name] for match in matches if match.kind == "excerpt"}
    if "passage" in settings.exclude:
        excluded |= {
            min((tracks[match.query.name], tracks[match.track.name]), key=lambda track: (track.seconds, track))
            for match in matches
            if match.kind == "passage"
        }
    return sorted(excluded)


def write_matches(settings: FindSettings, matches: Sequence[Match]) -> None:
    """Write one line per match, one row per passage, counts, and a page with players."""
    folder = settings.output_dir
    counts: dict[str, int] = dict(Counter(match.kind for match in matches))
    rows = [dict(zip(_COLUMNS, _row(match, place))) for match in matches for place in range(len(match.passages))]
    write_lines(
        folder / "matches.jsonl",
        (
            {
                "query": match.query.name,
                "track": match.track.name,
                "kind": match.kind,
                "covered_query": match.covered_query,
                "covered_track": match.covered_track,
                "agreement": round(match.agreement, 4),
                "passages": [{k: v for k, v in one._asdict().items() if k != "track"} for one in match.passages],
            }
            for match in matches
        ),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_path(folder / "passages.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
    limits = {"least_seconds": settings.least_seconds, "least_agreement": settings.least_agreement}
    write_json(folder / "summary.json", {"index": str(settings.index), **limits, "matches": len(matches), **counts})
    write_text(folder / "audit.html", _page(settings, matches, counts))


def _row(match: Match, place: int) -> tuple[object, ...]:
    one = match.passages[place]
    names = (match.query.name, match.track.name, match.kind)
    return (
        *names, one.start, one.end, one.track_start, one.track_end, one.speed, one.semitones, one.agreement, one.hits,
    )  # fmt: skip


def _page(settings: FindSettings, matches: Sequence[Match], counts: dict[str, int]) -> str:
    folder = settings.output_dir
    shown = sorted(matches, key=lambda match: match.agreement)[: settings.audit_matches]
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    span = Markup("{:.1f}&nbsp;to&nbsp;{:.1f}&nbsp;s")
    body: list[Markup | str] = [f"{len(matches)} matches: {listed}. The least certain are first."]
    for match in shown:
        body.append(Markup("<h2>{} · {} and {}</h2>").format(match.kind, match.query.name, match.track.name))
        rows = [
            (
                player(match.query.path, folder, one.start, one.end),
                span.format(one.start, one.end),
                player(match.track.path, folder, one.track_start, one.track_end),
                span.format(one.track_start, one.track_end),
                f"{one.speed:.3f}",
                f"{one.semitones:+.2f}",
                f"{one.agreement:.2f}",
            )
            for one in match.passages
        ]
        body.append(table(("file", "passage", "recording", "passage", "speed", "semitones", "agreement"), rows))
    return html_page("Shared passages", body)
