"""Output files of deduplication: the exclusion list, the pairs and groups behind it, and a page with players."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.core.pages import Markup, html_page, player
from stable_audio_tools.data.path_lists import PathList, read_path_list
from stable_audio_tools.dedup.codecs import Codec
from stable_audio_tools.dedup.copies import Copy, CopyGroup, DedupDecision, Evidence, SimilarFiles, SweepRow
from stable_audio_tools.dedup.settings import DedupSettings, PathFormat
from stable_audio_tools.dedup.store import Failure
from stable_audio_tools.dedup.tracks import Track


def write_outputs(
    settings: DedupSettings, codec: Codec, evidence: Evidence, decision: DedupDecision, sweep: list[SweepRow]
) -> dict[str, object]:
    """Write all output files and return the summary."""
    places, analysed = settings.outputs(), evidence.analysed
    excluded = sorted(decision.dropped | decision.leaking | (decision.broken if settings.exclude_failed else set()))
    counts = {
        "total_scanned_files": evidence.scanned,
        "processed_files": len(evidence.tracks),
        "encoded_files": len(analysed),
        "failed_files": len(decision.broken),
        **decision.counts(),
        "excluded_files": len(excluded),
        "kept_files": len(evidence.tracks) - len(excluded),
    }
    paths = {name: str(place.absolute()) for name, place in places.items()}
    summary = {**_setup(settings, codec), **counts, "sweep": sweep, **paths}
    header = f"{len(excluded)} files to exclude from training, as {settings.exclude_path_format} paths"
    write_excluded(places["exclude_output"], excluded, evidence.tracks, settings.exclude_path_format, header)
    write_pairs(places["pairs_output"], decision.groups)
    write_clusters(places["clusters_output"], decision.groups)
    write_failures(places["failed_output"], evidence.failures)
    description = f"{len(decision.dropped)} copies in {len(decision.groups)} groups among {len(analysed)} files"
    write_audit(places["audit_output"], decision.groups, description, settings.audit_groups)
    if settings.against:
        write_leaks(places["leaks_output"], analysed, evidence.analysed_others, decision.leaks)
    write_json(places["summary_output"], summary)
    return summary


def _setup(settings: DedupSettings, codec: Codec) -> dict[str, object]:
    """Return every setting that affects the result."""
    return {
        "dataset_config": settings.dataset_config,
        "dataset_dirs": list(settings.dataset_dir) or None,
        "against": settings.against,
        "codec": settings.codec,
        "codec_identity": codec.identity,
        "model_type": settings.model_type if settings.codec == "dac" else None,
        "model_path": settings.model_path or settings.ckpt_path or settings.pretrained_name,
        "codebook_size": codec.codebook_size,
        "num_codebooks": codec.num_codebooks,
        "histogram_mode": settings.histogram_mode,
        "max_audio_seconds": settings.max_audio_seconds,
        "similarity_threshold": settings.threshold(codec.threshold),
        "aligned_threshold": settings.aligned_threshold if settings.second_look else None,
        "linkage": settings.linkage,
        "keep": list(settings.keep),
        "limit": settings.limit,
        "exclude_path_format": settings.exclude_path_format,
    }


def entry_of(track: Track, format: PathFormat) -> str:
    """Format a file as an entry of a path list."""
    return {"qualified": track.qualified, "relative": track.relpath, "absolute": track.path}[format]


def write_excluded(
    path: Path, excluded: Sequence[Track], tracks: Sequence[Track], format: PathFormat, header: str
) -> None:
    """Write the exclusion list; raise `ConfigError` if an entry would also match a kept file."""
    lines = [entry_of(track, format) for track in excluded]
    with atomic_path(path) as temporary:
        text = "".join(f"{line}\n" for line in [f"# {header}", *lines])
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        if read_path_list(temporary) != lines:
            odd = next(line for line, read in zip(lines, [*read_path_list(temporary), ""]) if line != read)
            raise ConfigError(f"{odd!r}: a path list cannot represent this file name; rename the file")
        listed, out = PathList(temporary), set(excluded)
        for track in tracks:
            if track not in out and listed.fits(track.path, track.relpath, track.id):
                raise ConfigError(
                    f"--exclude-path-format {format}: excluding a copy would also exclude {track.path}, which is "
                    "kept; use 'qualified'"
                )


def write_pairs(path: Path, groups: Sequence[CopyGroup]) -> None:
    """Write one line per excluded copy."""
    write_lines(path, (_pair(group.kept, copy) for group in groups for copy in group.copies))


def _pair(kept: Track, copy: Copy) -> dict[str, object]:
    row: dict[str, object] = {
        "keep_path": kept.path,
        "keep_relpath": kept.relpath,
        "drop_path": copy.dropped.path,
        "drop_relpath": copy.dropped.relpath,
        "similarity": copy.similarity,
    }
    if copy.aligned is not None:
        row.update(aligned=copy.aligned.score, offset_seconds=copy.aligned.offset_seconds)
    if copy.like != kept:
        row["linked_by"] = copy.like.path
    return row


def write_clusters(path: Path, groups: Sequence[CopyGroup]) -> None:
    """Write one line per group of copies."""
    rows = (
        {"keep": group.kept.qualified, "drop": [copy.dropped.qualified for copy in group.copies]} for group in groups
    )
    write_lines(path, rows)


def write_leaks(path: Path, tracks: Sequence[Track], others: Sequence[Track], leaks: Sequence[SimilarFiles]) -> None:
    """Write one line per recording that two datasets share."""
    rows = []
    for pair in leaks:
        row: dict[str, object] = {
            "path": tracks[pair.first].path,
            "against_path": others[pair.second].path,
            "similarity": pair.similarity,
        }
        if pair.aligned is not None:
            row.update(aligned=pair.aligned.score, offset_seconds=pair.aligned.offset_seconds)
        rows.append(row)
    write_lines(path, rows)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write the files that could not be analysed."""
    write_json(path, [failure._asdict() for failure in failures])


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one line of JSON per row."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


# ------------------------------------------------------------------ page with players


_HEAD = "<tr><th>file</th><th>listen</th><th>length</th><th>similarity</th><th>aligned</th><th>offset</th></tr>"


def write_audit(path: Path, groups: Sequence[CopyGroup], summary: str, most: int) -> None:
    """Write a page with players for the `most` least certain groups, in ascending order of certainty."""

    def certainty(group: CopyGroup) -> float:
        return min(copy.similarity if copy.aligned is None else copy.aligned.score for copy in group.copies)

    shown = sorted(groups, key=certainty)[:most]
    description = (
        summary if len(shown) == len(groups) else f"{summary}; the {len(shown)} least certain groups are shown"
    )
    body = "\n".join(_table(number, group, path.parent) for number, group in enumerate(shown, 1))
    write_text(path, html_page("Copies in a dataset", [description, Markup(body)]))


def _table(number: int, group: CopyGroup, folder: Path) -> str:
    rows = [_row(group.kept, None, folder), *(_row(copy.dropped, copy, folder) for copy in group.copies)]
    return f'<h2>Group {number}</h2>\n<div class="wide"><table>\n{_HEAD}\n' + "\n".join(rows) + "\n</table></div>"


def _row(track: Track, copy: Copy | None, folder: Path) -> str:
    numbers = ["kept", "", ""]
    if copy is not None:
        numbers[0] = f"{copy.similarity:.4f}"
        if copy.aligned is not None:
            numbers[1:] = [f"{copy.aligned.score:.3f}", f"{copy.aligned.offset_seconds:+.1f} s"]
    cells = "".join(f'<td class="number">{text}</td>' for text in (f"{track.seconds:.1f} s", *numbers))
    name = escape(track.qualified.encode("utf-8", "replace").decode())
    kind = "kept" if copy is None else "copy"
    return f'<tr class="{kind}"><td>{name}</td><td>{player(track.path, folder)}</td>{cells}</tr>'
