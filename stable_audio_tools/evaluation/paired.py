"""Sounds against their own references: files of the same name in two folders."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.data import audio_io
from stable_audio_tools.evaluation.embedders.base import mean_vector
from stable_audio_tools.evaluation.metrics.pairs import kl_divergences
from stable_audio_tools.evaluation.reconstruction.metrics import Metrics, compare
from stable_audio_tools.evaluation.sets import FeatureSet
from stable_audio_tools.evaluation.settings import KLDirection

logger = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 0.5  # seconds; largest difference in length of the files of a pair


class PairRecord(TypedDict):
    """Compared files of two folders in a result file."""

    pairs: int
    without_partner: list[str]
    failed: dict[str, str]
    files: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Pairs:
    """Files with the same name in two folders, and files without a partner."""

    names: tuple[tuple[str, str], ...]  # (reference, generated)
    alone: tuple[str, ...]


def find_pairs(reference: Mapping[str, object], generated: Mapping[str, object]) -> Pairs:
    """Match files by their path below the folder, without the suffix."""
    by_stem = {str(PurePosixPath(name).with_suffix("")): name for name in reference}
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in generated}
    pairs = tuple((by_stem[stem], name) for name, stem in stems.items() if stem in by_stem)
    if not pairs:
        raise UserError("no file has a reference of the same name; pairs need equal paths below both folders")
    used = {name for pair in pairs for name in pair}
    alone = tuple(name for name in (*reference, *generated) if name not in used)
    if alone:
        logger.warning("%d files have no partner of the same name, such as %s", len(alone), alone[0])
    return Pairs(pairs, alone)


def reconstruction_scores(reference: FeatureSet, generated: FeatureSet) -> tuple[dict[str, float | None], PairRecord]:
    """Compute mean SI-SDR, STFT and mel distance over the pairs, and a record of every pair."""
    pairs = find_pairs(reference.paths, generated.paths)
    measured: dict[str, dict[str, float | None]] = {}
    failed: dict[str, str] = {}
    with progress_bar("comparing pairs", len(pairs.names)) as show:
        for number, (original, name) in enumerate(pairs.names):
            show(number)
            try:
                measured[name] = _compare_files(generated.paths[name], reference.paths[original])._asdict()
            except AudioError as error:
                failed[name] = str(error)
                logger.warning("%s: skipped (%s)", name, error)
    means: dict[str, float | None] = {}
    for metric in ("si_sdr", "mrstft", "mel"):
        known = [value for row in measured.values() if (value := row[metric]) is not None]
        means[metric] = math.fsum(known) / len(known) if known else None
    record = PairRecord(pairs=len(measured), without_partner=list(pairs.alone), failed=failed, files=measured)
    return means, record


def pair_divergences(reference: FeatureSet, generated: FeatureSet, direction: KLDirection) -> dict[str, float]:
    """Compute the KL divergence of classes of each pair, from the mean logits of each file, in nats."""
    references, sounds = reference.embedded.frames, generated.embedded.frames
    pairs = find_pairs(references, sounds).names
    p = np.stack([mean_vector(references[original]) for original, _ in pairs])
    q = np.stack([mean_vector(sounds[name]) for _, name in pairs])
    divergences: NDArray[np.float64] = kl_divergences(p, q, direction)
    return {name: float(value) for (_, name), value in zip(pairs, divergences)}


def _compare_files(path: Path, original: Path) -> Metrics:
    audio, rate = audio_io.read(path)
    target = audio_io.read(original, sample_rate=rate).samples
    difference = abs(audio.shape[-1] - target.shape[-1]) / rate
    if difference > LARGEST_DIFFERENCE:
        raise AudioError(f"its length differs by {difference:.2f} s from {original}")
    length = min(audio.shape[-1], target.shape[-1])
    if not length:
        raise AudioError("it contains no samples")
    if len(audio) != len(target):
        audio, target = audio.mean(0, keepdim=True), target.mean(0, keepdim=True)
    measured = compare(audio[:, :length], target[:, :length], rate)
    if not all(value is None or math.isfinite(value) for value in measured):
        raise AudioError("it contains NaN or infinite samples")
    return measured
