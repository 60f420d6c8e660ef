"""A deduplication run: analyse the files, compare them, write the lists."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.gathering import all_processes
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import is_rank_zero, local_rank, rank, world_size
from stable_audio_tools.dedup.codecs import Codec, CodecSettings, create_codec
from stable_audio_tools.dedup.copies import (
    CopyGroup,
    Evidence,
    SimilarFiles,
    SweepRow,
    compare_frames,
    decide,
    sweep_thresholds,
    without_failures,
    without_frames,
)
from stable_audio_tools.dedup.outputs import write_outputs
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.similarity import find_similar
from stable_audio_tools.dedup.store import Failure, FeatureStore, analyse_all
from stable_audio_tools.dedup.tracks import Track, tracks_of_config, tracks_of_folders


@dataclass(frozen=True)
class DedupOutcome:
    """Result of a run."""

    summary: dict[str, object]
    groups: list[CopyGroup]
    leaks: list[SimilarFiles]
    failures: list[Failure]
    sweep: list[SweepRow]


def deduplicate(settings: DedupSettings) -> DedupOutcome | None:
    """Find copies and write the lists.

    Processes other than the first only analyse their share of the files and return None.
    """
    scanned, others = find_tracks(settings)
    tracks = scanned[: settings.limit]
    codec = create_codec(_own_codec(settings))
    if settings.codebook_size not in (None, codec.codebook_size):
        raise ConfigError(f"--codebook-size: this codec has codebooks of {codec.codebook_size}; omit the flag")
    store = FeatureStore(settings.place(settings.features_dir, "features"), codec, settings.max_audio_seconds)
    once = {track.path: track for track in (*tracks, *others)}
    failures = _analyse(store, [once[path] for path in sorted(once)], settings)
    if failures is None:
        return None
    analysed, analysed_others = without_failures(tracks, failures), without_failures(others, failures)
    if not analysed:
        raise AudioError(f"none of {len(tracks)} files can be read; first: {failures[0].path}: {failures[0].error}")
    within = _similar_files(store, analysed, None, settings, codec)
    across = _similar_files(store, analysed, analysed_others, settings, codec) if analysed_others else []
    evidence = Evidence(tracks, others, len(scanned), failures, within, across)
    decision = decide(evidence, settings, settings.threshold(codec.threshold))
    sweep = sweep_thresholds(evidence, settings)
    summary = write_outputs(settings, codec, evidence, decision, sweep)
    return DedupOutcome(summary, decision.groups, decision.leaks, failures, sweep)


def find_tracks(settings: DedupSettings) -> tuple[list[Track], list[Track]]:
    """Return the files of the dataset, and the files of the dataset it is compared with."""
    extensions = [f".{name.strip().lstrip('.')}" for name in settings.extensions.split(",") if name.strip()]
    if settings.dataset_config:
        tracks = tracks_of_config(settings.dataset_config, extensions)
    else:
        tracks = tracks_of_folders(settings.dataset_dir, extensions)
    if not settings.against:
        return tracks, []
    if settings.against.endswith(".json"):
        return tracks, tracks_of_config(settings.against, extensions)
    return tracks, tracks_of_folders([settings.against], extensions)


def _own_codec(settings: CodecSettings) -> CodecSettings:
    """Assign one GPU to each process of a machine."""
    if settings.device in ("auto", "cuda") and torch.cuda.is_available():
        return replace(settings, device=f"cuda:{local_rank() % torch.cuda.device_count()}")
    return settings


# ------------------------------------------------------------------ analysis


def _analyse(store: FeatureStore, tracks: Sequence[Track], settings: DedupSettings) -> list[Failure] | None:
    """Analyse this process's share and wait for the others; return the failures in the first process, else None."""
    with all_processes() as gather:
        with progress_bar("analysing", 1.0) as show:
            share = tracks[rank() :: world_size()]
            failures = analyse_all(store, share, settings.num_workers or os.cpu_count() or 1, show)
        shares = gather(failures)
    return sorted(failure for share in shares for failure in share) if is_rank_zero() else None


# ------------------------------------------------------------------ comparison


def _similar_files(
    store: FeatureStore, tracks: list[Track], others: list[Track] | None, settings: DedupSettings, codec: Codec
) -> list[SimilarFiles]:
    per_codebook = settings.histogram_mode == "per_codebook"
    with progress_bar("comparing", 1.0) as show:
        pairs = find_similar(
            store.features(tracks, per_codebook),
            min([settings.threshold(codec.threshold), *settings.sweep]),
            against=None if others is None else store.features(others, per_codebook),
            block=settings.similarity_chunk_size,
            device=pick_device(settings.similarity_device),
            progress=show,
        )
    if not settings.second_look:
        return without_frames(pairs)
    with progress_bar("comparing frames", 1.0) as show:
        return compare_frames(
            store,
            tracks,
            tracks if others is None else others,
            pairs,
            settings.num_workers or os.cpu_count() or 1,
            show,
        )
