"""Sounds against their own references: files of the same name in two folders."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.data import audio_io
from stable_audio_tools.evaluation.embedders.base import mean_vector
from stable_audio_tools.evaluation.metrics.pairs import kl_divergence
from stable_audio_tools.evaluation.reconstruction.metrics import Metrics, compare
from stable_audio_tools.evaluation.sets import FeatureSet

logger = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 0.5  # seconds by which two files of a pair may differ in length


@dataclass(frozen=True)
class Pairs:
    """Names of both folders that belong together, and what has no partner."""

    names: tuple[tuple[str, str], ...]  # (reference, made)
    alone: tuple[str, ...]


def find_pairs(reference: Mapping[str, Any], made: Mapping[str, Any]) -> Pairs:
    """By path below the folder without its suffix."""
    by_stem = {str(PurePosixPath(name).with_suffix("")): name for name in reference}
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in made}
    pairs = tuple((by_stem[stem], name) for name, stem in stems.items() if stem in by_stem)
    if not pairs:
        raise UserError("no file has a reference of the same name; pairs need equal paths below both folders")
    used = {name for pair in pairs for name in pair}
    alone = tuple(name for name in (*reference, *made) if name not in used)
    if alone:
        logger.warning("%d files have no partner of the same name, such as %s", len(alone), alone[0])
    return Pairs(pairs, alone)


def reconstruction_scores(reference: FeatureSet, made: FeatureSet) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Means of SI-SDR, STFT and mel distance over the pairs, and what was measured and left out."""
    pairs = find_pairs(reference.paths, made.paths)
    found: dict[str, dict[str, float | None]] = {}
    failed: dict[str, str] = {}
    with progress_bar("comparing pairs", len(pairs.names)) as show:
        for number, (original, name) in enumerate(pairs.names):
            show(number)
            try:
                found[name] = _compare_files(made.paths[name], reference.paths[original])._asdict()
            except AudioError as error:
                failed[name] = str(error)
                logger.warning("%s: left out (%s)", name, error)
    means = {metric: _mean([row[metric] for row in found.values()]) for metric in ("si_sdr", "mrstft", "mel")}
    return means, {"pairs": len(found), "without_partner": list(pairs.alone), "failed": failed, "files": found}


def kl_score(reference: FeatureSet, made: FeatureSet) -> tuple[float, int]:
    """Mean KL(reference || made) of classes over the pairs, from the mean scores of each file -> (nats, pairs)."""
    references, sounds = reference.embedded.frames, made.embedded.frames
    pairs = find_pairs(references, sounds).names
    p = np.stack([mean_vector(references[original]) for original, _ in pairs])
    q = np.stack([mean_vector(sounds[name]) for _, name in pairs])
    return kl_divergence(p, q), len(pairs)


def _compare_files(made: Path, original: Path) -> Metrics:
    audio, rate = audio_io.read(made)
    wanted = audio_io.read(original, sample_rate=rate).samples
    difference = abs(audio.shape[-1] - wanted.shape[-1]) / rate
    if difference > LARGEST_DIFFERENCE:
        raise AudioError(f"it is {difference:.2f} s longer or shorter than {original}")
    length = min(audio.shape[-1], wanted.shape[-1])
    if not length:
        raise AudioError("it holds no samples")
    if len(audio) != len(wanted):
        audio, wanted = audio.mean(0, keepdim=True), wanted.mean(0, keepdim=True)
    measured = compare(audio[:, :length], wanted[:, :length], rate)
    if not all(value is None or math.isfinite(value) for value in measured):
        raise AudioError("it holds NaN or infinite samples")
    return measured


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
