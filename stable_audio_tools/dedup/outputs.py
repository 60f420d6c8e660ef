"""What a run writes: the list that training reads, and what tells why."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data.path_lists import PathList, read_path_list
from stable_audio_tools.dedup.audit import write_audit
from stable_audio_tools.dedup.codecs import Codec
from stable_audio_tools.dedup.copies import Copy, CopyGroup, Likeness
from stable_audio_tools.dedup.settings import DedupSettings, PathFormat
from stable_audio_tools.dedup.store import Failure
from stable_audio_tools.dedup.tracks import Track
from stable_audio_tools.dedup.verdict import DedupVerdict, Evidence


def write_outputs(
    settings: DedupSettings, codec: Codec, evidence: Evidence, verdict: DedupVerdict, sweep: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write everything -> the summary."""
    places, heard = settings.outputs(), evidence.heard
    excluded = sorted(verdict.dropped | verdict.leaking | (verdict.broken if settings.exclude_failed else set()))
    counts = {
        "total_scanned_files": evidence.scanned,
        "processed_files": len(evidence.tracks),
        "encoded_files": len(heard),
        "failed_files": len(verdict.broken),
        **verdict.counts(),
        "excluded_files": len(excluded),
        "kept_files": len(evidence.tracks) - len(excluded),
    }
    paths = {name: str(place.absolute()) for name, place in places.items()}
    summary = {**_setup(settings, codec), **counts, "sweep": sweep, **paths}
    header = f"{len(excluded)} files that training leaves out, as {settings.exclude_path_format} paths"
    write_excluded(places["exclude_output"], excluded, evidence.tracks, settings.exclude_path_format, header)
    write_pairs(places["pairs_output"], verdict.groups)
    write_clusters(places["clusters_output"], verdict.groups)
    write_failures(places["failed_output"], evidence.failures)
    told = f"{len(verdict.dropped)} copies in {len(verdict.groups)} groups among {len(heard)} files"
    write_audit(places["audit_output"], verdict.groups, told, settings.audit_groups)
    if settings.against:
        write_leaks(places["leaks_output"], heard, evidence.heard_others, verdict.leaks)
    write_json(places["summary_output"], summary)
    return summary


def _setup(settings: DedupSettings, codec: Codec) -> dict[str, Any]:
    """What the result depends on."""
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
    """A file as an entry of a path list."""
    return {"qualified": track.qualified, "relative": track.relpath, "absolute": track.path}[format]


def write_excluded(
    path: Path, excluded: Sequence[Track], tracks: Sequence[Track], format: PathFormat, header: str
) -> None:
    """The list of files to leave out; an entry that would take a kept file with it is refused."""
    lines = [entry_of(track, format) for track in excluded]
    with atomic_path(path) as temporary:
        text = "".join(f"{line}\n" for line in [f"# {header}", *lines])
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        if read_path_list(temporary) != lines:
            odd = next(line for line, read in zip(lines, [*read_path_list(temporary), ""]) if line != read)
            raise ConfigError(f"{odd!r}: no path list can hold such a name; rename the file")
        listed, out = PathList(temporary), set(excluded)
        for track in tracks:
            if track not in out and listed.fits(track.path, track.relpath, track.id):
                raise ConfigError(
                    f"--exclude-path-format {format}: leaving out a copy would leave out {track.path} too, which is "
                    "kept; use 'qualified'"
                )


def write_pairs(path: Path, groups: Sequence[CopyGroup]) -> None:
    """A line for each file that is left out."""
    write_lines(path, (_pair(group.kept, copy) for group in groups for copy in group.copies))


def _pair(kept: Track, copy: Copy) -> dict[str, Any]:
    row: dict[str, Any] = {
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
    """A line for each group of copies."""
    rows = (
        {"keep": group.kept.qualified, "drop": [copy.dropped.qualified for copy in group.copies]} for group in groups
    )
    write_lines(path, rows)


def write_leaks(path: Path, tracks: Sequence[Track], others: Sequence[Track], likenesses: Sequence[Likeness]) -> None:
    """A line for each recording that two data sets share."""
    rows = []
    for pair in likenesses:
        row: dict[str, Any] = {
            "path": tracks[pair.first].path,
            "against_path": others[pair.second].path,
            "similarity": pair.similarity,
        }
        if pair.aligned is not None:
            row.update(aligned=pair.aligned.score, offset_seconds=pair.aligned.offset_seconds)
        rows.append(row)
    write_lines(path, rows)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """The files that could not be heard."""
    write_json(path, [failure._asdict() for failure in failures])


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
