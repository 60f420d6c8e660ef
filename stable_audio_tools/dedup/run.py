"""What `dac_hist_dedup.py` does, from the files to the lists."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stable_audio_tools.config import AudioError, ConfigError
from stable_audio_tools.dedup.alignment import ALIGNED_THRESHOLD
from stable_audio_tools.dedup.audit import write_audit
from stable_audio_tools.dedup.codecs import Codec, CodecSettings, create_codec
from stable_audio_tools.dedup.copies import (
    Group,
    Likeness,
    Linkage,
    confirmed,
    group_copies,
    look_again,
    without_second_look,
)
from stable_audio_tools.dedup.outputs import (
    PathFormat,
    write_clusters,
    write_excluded,
    write_failures,
    write_json,
    write_leaks,
    write_pairs,
)
from stable_audio_tools.dedup.similarity import BLOCK, find_similar
from stable_audio_tools.dedup.store import Failure, FeatureStore, hear_all
from stable_audio_tools.dedup.tracks import EXTENSIONS, Track, tracks_of_config, tracks_of_folders
from stable_audio_tools.inference.progress import progress_bar
from stable_audio_tools.system.devices import pick_device
from stable_audio_tools.system.ranks import is_rank_zero, local_rank, rank, world_size

logger = logging.getLogger(__name__)

_PATIENCE = timedelta(days=7)  # for the slowest process


@dataclass(frozen=True)
class DedupSettings:
    """The flags of the command."""

    dataset_config: str | None = None
    dataset_dir: Sequence[str] = ()
    against: str | None = None
    output_dir: str = "outputs/dac_dedup"
    exclude_output: str | None = None
    pairs_output: str | None = None
    failed_output: str | None = None
    summary_output: str | None = None
    features_dir: str | None = None
    extensions: str = EXTENSIONS
    limit: int | None = None
    codec: CodecSettings = field(default_factory=CodecSettings)
    codebook_size: int | None = None
    max_audio_seconds: float = 120.0
    histogram_mode: str = "per_codebook"
    similarity_device: str = "auto"
    similarity_threshold: float | None = None
    similarity_chunk_size: int = BLOCK
    second_look: bool = True
    aligned_threshold: float = ALIGNED_THRESHOLD
    linkage: Linkage = "single"
    keep: Sequence[str] = ("longest",)
    sweep: Sequence[float] = ()
    exclude_path_format: PathFormat = "qualified"
    exclude_failed: bool = False
    audit_groups: int = 200
    num_workers: int | None = None

    def place(self, given: str | None, name: str) -> Path:
        return Path(given) if given else Path(self.output_dir) / name


@dataclass(frozen=True)
class Outcome:
    """What was found."""

    summary: dict[str, Any]
    groups: list[Group]
    leaks: list[Likeness]
    failures: list[Failure]
    sweep: list[dict[str, Any]]


def deduplicate(settings: DedupSettings) -> Outcome | None:
    """Find copies and write the lists; processes other than the first only hear their share -> None."""
    tracks, others = find_tracks(settings)
    codec = create_codec(_own_codec(settings.codec))
    if settings.codebook_size not in (None, codec.codebook_size):
        raise ConfigError(f"--codebook-size: this codec has codebooks of {codec.codebook_size}; leave the flag out")
    store = FeatureStore(settings.place(settings.features_dir, "features"), codec, settings.max_audio_seconds)
    failures = _hear(store, sorted({*tracks, *others}, key=lambda track: track.path), settings)
    if failures is None:
        return None
    failed = {failure.path for failure in failures}
    heard, heard_others = ([t for t in side if t.path not in failed] for side in (tracks, others))
    if not heard:
        raise AudioError(f"none of {len(tracks)} files can be heard; first: {failures[0].path}: {failures[0].error}")
    own = _likenesses(store, heard, None, settings, codec)
    across = _likenesses(store, heard, heard_others, settings, codec) if others else []
    return _finish(settings, codec, tracks, heard, heard_others, own, across, failures)


def find_tracks(settings: DedupSettings) -> tuple[list[Track], list[Track]]:
    """The files to look through, and those of the other data set."""
    extensions = [f".{name.strip().lstrip('.')}" for name in settings.extensions.split(",") if name.strip()]
    if bool(settings.dataset_config) == bool(settings.dataset_dir):
        raise ConfigError("give --dataset-config or --dataset-dir, one of them")
    if settings.dataset_config:
        tracks = tracks_of_config(settings.dataset_config, extensions, settings.limit)
    else:
        tracks = tracks_of_folders(settings.dataset_dir, extensions, settings.limit)
    if not settings.against:
        return tracks, []
    if settings.against.endswith(".json"):
        return tracks, tracks_of_config(settings.against, extensions)
    return tracks, tracks_of_folders([settings.against], extensions)


def _own_codec(settings: CodecSettings) -> CodecSettings:
    """Each process of a machine takes a GPU of its own."""
    if settings.device in ("auto", "cuda") and torch.cuda.is_available():
        return CodecSettings(**{**asdict(settings), "device": f"cuda:{local_rank() % torch.cuda.device_count()}"})
    return settings


# ------------------------------------------------------------------ hearing


def _hear(store: FeatureStore, tracks: Sequence[Track], settings: DedupSettings) -> list[Failure] | None:
    """Hear this process's share, and wait for the others -> what failed; None on all processes but the first."""
    workers = settings.num_workers or os.cpu_count() or 1
    if world_size() > 1:
        _join()
    with progress_bar("listening", 1.0) as show:
        failures = hear_all(store, tracks[rank() :: world_size()], workers, show)
    if world_size() > 1:
        shares: list[list[Failure]] = [[] for _ in range(world_size())]
        dist.all_gather_object(shares, failures)
        dist.destroy_process_group()
        failures = [failure for share in shares for failure in share]
    return sorted(failures) if is_rank_zero() else None


def _join() -> None:
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError("several processes were started, but not told of each other; start them with torchrun")
    dist.init_process_group("gloo", timeout=_PATIENCE)


# ------------------------------------------------------------------ comparing


def _likenesses(
    store: FeatureStore, tracks: list[Track], others: list[Track] | None, settings: DedupSettings, codec: Codec
) -> list[Likeness]:
    per_codebook = settings.histogram_mode == "per_codebook"
    with progress_bar("comparing", 1.0) as show:
        pairs = find_similar(
            store.features(tracks, per_codebook),
            min([_threshold(settings, codec), *settings.sweep]),
            against=None if others is None else store.features(others, per_codebook),
            block=settings.similarity_chunk_size,
            device=pick_device(settings.similarity_device),
            progress=show,
        )
    if not settings.second_look:
        return without_second_look(pairs)
    with progress_bar("second look", 1.0) as show:
        return look_again(
            store,
            tracks,
            tracks if others is None else others,
            pairs,
            settings.num_workers or os.cpu_count() or 1,
            show,
        )


def _threshold(settings: DedupSettings, codec: Codec) -> float:
    return codec.threshold if settings.similarity_threshold is None else settings.similarity_threshold


def sweep_thresholds(
    tracks: Sequence[Track], likenesses: Sequence[Likeness], settings: DedupSettings
) -> list[dict[str, Any]]:
    """What each threshold of the sweep would leave out."""
    rows = []
    for threshold in sorted(settings.sweep):
        pairs = confirmed(likenesses, threshold, settings.aligned_threshold)
        groups = group_copies(tracks, pairs, settings.linkage, settings.keep)
        dropped = sum(len(group.copies) for group in groups)
        candidates = sum(pair.similarity >= threshold for pair in likenesses)
        row = {"threshold": threshold, "candidates": candidates, "pairs": len(pairs), "clusters": len(groups)}
        rows.append({**row, "duplicate_files": dropped, "kept_files": len(tracks) - dropped})
    return rows


# ------------------------------------------------------------------ writing


def _finish(
    settings: DedupSettings,
    codec: Codec,
    tracks: list[Track],
    heard: list[Track],
    others: list[Track],
    own: list[Likeness],
    across: list[Likeness],
    failures: list[Failure],
) -> Outcome:
    threshold = _threshold(settings, codec)
    pairs = confirmed(own, threshold, settings.aligned_threshold)
    groups = group_copies(heard, pairs, settings.linkage, settings.keep)
    leaks = confirmed(across, threshold, settings.aligned_threshold)
    dropped = {copy.dropped for group in groups for copy in group.copies}
    leaking = _leaking(heard, groups, leaks)
    paths = {failure.path for failure in failures}
    broken = {track for track in tracks if track.path in paths}
    excluded = sorted(dropped | leaking | (broken if settings.exclude_failed else set()))
    outputs = {
        "exclude_output": settings.place(settings.exclude_output, "exclude_paths.txt"),
        "pairs_output": settings.place(settings.pairs_output, "similar_pairs.jsonl"),
        "failed_output": settings.place(settings.failed_output, "failed_files.json"),
        "summary_output": settings.place(settings.summary_output, "summary.json"),
        "clusters_output": settings.place(None, "clusters.jsonl"),
        "audit_output": settings.place(None, "audit.html"),
        **({"leaks_output": settings.place(None, "leaks.jsonl")} if settings.against else {}),
    }
    counts = {
        "total_scanned_files": len(tracks),
        "processed_files": len(tracks),
        "encoded_files": len(heard),
        "failed_files": len(failures),
        "candidate_pairs": sum(pair.similarity >= threshold for pair in own),
        "duplicate_pairs": len(pairs),
        "clusters": len(groups),
        "duplicate_files": len(dropped),
        "leaking_files": len(leaking),
        "excluded_files": len(excluded),
        "kept_files": len(tracks) - len(excluded),
    }
    sweep = sweep_thresholds(heard, own, settings)
    summary = {
        **_setup(settings, codec),
        **counts,
        "sweep": sweep,
        **{k: str(v.absolute()) for k, v in outputs.items()},
    }
    header = f"{len(excluded)} files that training leaves out, as {settings.exclude_path_format} paths"
    write_excluded(outputs["exclude_output"], excluded, tracks, settings.exclude_path_format, header)
    write_pairs(outputs["pairs_output"], groups)
    write_clusters(outputs["clusters_output"], groups)
    write_failures(outputs["failed_output"], failures)
    told = f"{len(dropped)} copies in {len(groups)} groups among {len(heard)} files"
    write_audit(outputs["audit_output"], groups, told, settings.audit_groups)
    if settings.against:
        write_leaks(outputs["leaks_output"], heard, others, leaks)
    write_json(outputs["summary_output"], summary)
    return Outcome(summary, groups, leaks, failures, sweep)


def _leaking(tracks: Sequence[Track], groups: Sequence[Group], leaks: Sequence[Likeness]) -> set[Track]:
    """Files that the other data set holds too, with the copies of such files."""
    found = {tracks[pair.first] for pair in leaks}
    for group in groups:
        members = {group.kept, *(copy.dropped for copy in group.copies)}
        if members & found:
            found |= members
    return found


def _setup(settings: DedupSettings, codec: Codec) -> dict[str, Any]:
    """What the result depends on."""
    return {
        "dataset_config": settings.dataset_config,
        "dataset_dirs": list(settings.dataset_dir) or None,
        "against": settings.against,
        "codec": settings.codec.codec,
        "codec_identity": codec.identity,
        "model_type": settings.codec.model_type if settings.codec.codec == "dac" else None,
        "model_path": settings.codec.model_path or settings.codec.ckpt_path or settings.codec.pretrained_name,
        "codebook_size": codec.codebook_size,
        "num_codebooks": codec.num_codebooks,
        "histogram_mode": settings.histogram_mode,
        "max_audio_seconds": settings.max_audio_seconds,
        "similarity_threshold": _threshold(settings, codec),
        "aligned_threshold": settings.aligned_threshold if settings.second_look else None,
        "linkage": settings.linkage,
        "keep": list(settings.keep),
        "limit": settings.limit,
        "exclude_path_format": settings.exclude_path_format,
    }
