"""Scores of reference sets × generated sets × embedders, with the setup of each."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.ranks import world_size
from stable_audio_tools.evaluation.embedders import Embedder, create_embedder, mean_vector
from stable_audio_tools.evaluation.embedders.base import Identity
from stable_audio_tools.evaluation.metrics.frechet import (
    FileMoments,
    Sides,
    extrapolate,
    frechet_distance,
    gaussian_of,
    warn_of_few_frames,
)
from stable_audio_tools.evaluation.metrics.kernel import KernelSides, kad, kernel_distance
from stable_audio_tools.evaluation.metrics.neighbours import (
    manifold_intervals,
    manifold_scores,
    memorisation,
    vendi_score,
)
from stable_audio_tools.evaluation.metrics.resampling import LEVEL, TwoSets, Weights, compare_paired
from stable_audio_tools.evaluation.paired import PairRecord, pair_divergences, reconstruction_scores
from stable_audio_tools.evaluation.results import DEFINITIONS, Result, SetComparison, Subject
from stable_audio_tools.evaluation.sets import FeatureSet, SetRecord, audio_set, folder_of_fadtk, packaged_set
from stable_audio_tools.evaluation.settings import ScoringSettings

logger = logging.getLogger(__name__)

MOST_DIMENSIONS = 2048  # of vectors; larger ones would need gigabytes and hours for an interval
_MOST_LISTED = 50  # generated files in the list of nearest training files

Scores = dict[str, float | None]


class Details(TypedDict, total=False):
    """Evidence behind the scores of a result."""

    reference: SetRecord
    fad: dict[str, float]
    fad_inf: dict[str, object]
    kernel_distance: dict[str, object]
    kad: dict[str, object]
    per_song: dict[str, float]
    per_song_left_out: list[str]
    paired: PairRecord
    kl_pairs: int
    memorisation: list[dict[str, object]]


@dataclass(frozen=True)
class Scored:
    """Results of all combinations, and paired comparisons of the generated sets."""

    results: list[Result]
    comparisons: list[SetComparison]


@dataclass(frozen=True)
class SetPair:
    """Two sets, their embedder, and the settings."""

    reference: FeatureSet
    generated: FeatureSet
    name: str
    embedder: Callable[[], Embedder]  # built when audio is embedded: vectors of fadtk need no weights
    settings: ScoringSettings
    held_out: FeatureSet | None = None

    @property
    def identity(self) -> Identity:
        """Identity of the embedder, or its name if nothing was embedded here."""
        if "stable-audio-tools" not in (self.reference.made_by, self.generated.made_by):
            return {"embedder": self.name}
        return self.embedder().identity

    @property
    def sides(self) -> Sides:
        """Both sets as moments of files."""
        if (width := len(self.generated.gaussian.mean)) > MOST_DIMENSIONS:
            raise UserError(f"--inf and --significance take vectors of at most {MOST_DIMENSIONS} numbers, got {width}")
        generated = self.generated.file_moments
        if not isinstance(generated, FileMoments):
            raise UserError(f"{self.generated.source}: contains statistics only; this score needs the vectors")
        return Sides(self.reference.file_moments, generated)


def score_sets(
    references: Sequence[str],
    generated: Sequence[str],
    embedders: Sequence[str],
    cache_dir: Path,
    settings: ScoringSettings,
    device: str = "cpu",
) -> Scored | None:
    """Score each combination; None in a process that finishes while others still embed."""
    results: list[Result] = []
    comparisons: list[SetComparison] = []
    names = list(dict.fromkeys(embedders))
    built = {name: cache(partial(create_embedder, name, device)) for name in names}
    sources = dict.fromkeys([*references, *generated, *([] if settings.held_out is None else [settings.held_out])])
    if world_size() > 1:  # only who has embedded all of its shares can know whether everything is there
        for name in names:
            for source in sources:
                load_set(source, name, built[name], cache_dir, settings)
    for name in names:
        loaded = {source: load_set(source, name, built[name], cache_dir, settings) for source in sources}
        sets = {source: found for source, found in loaded.items() if found is not None}
        if len(sets) < len(sources):
            return None
        held_out = None if settings.held_out is None else sets[settings.held_out]
        for reference in dict.fromkeys(references):
            pairs = [
                SetPair(sets[reference], sets[source], name, built[name], settings, held_out)
                for source in dict.fromkeys(generated)
            ]
            results += map(score_pair, pairs)
            if settings.significance:
                comparisons += [row for a, b in combinations(pairs, 2) for row in compare_pairs(a, b)]
        del built[name]  # its network makes room for the next
    return Scored(results, comparisons)


def load_set(
    source: str, name: str, embedder: Callable[[], Embedder], cache_dir: Path, settings: ScoringSettings
) -> FeatureSet | None:
    """Load a file of statistics, a cache of fadtk, or a folder of audio."""
    if source.endswith(".npz"):
        return packaged_set(source, name.partition(":")[0])
    if settings.read_fadtk:
        found = folder_of_fadtk(source, name.partition(":")[0], settings.unit, settings.limit)
        if found is not None:
            return found
        logger.info("%s: no vectors of %s by fadtk; embedding the audio", source, name)
    work = (settings.batch_size, settings.num_workers)
    return audio_set(source, embedder(), cache_dir, settings.unit, settings.limit, *work)


def score_pair(pair: SetPair) -> Result:
    """Compute all scores that the settings ask for."""
    reference, generated = pair.reference, pair.generated
    if reference.made_by != generated.made_by:
        logger.warning(
            "the vectors of %s are by %s and those of %s by %s; their windows may differ",
            *(reference.source, reference.made_by, generated.source, generated.made_by),
        )
    for one in (reference, generated):
        warn_of_few_frames(f"{pair.name}: {one.source}", one.gaussian)
    scores: Scores = {"fad": frechet_distance(reference.gaussian, generated.gaussian)}
    details = Details(reference=reference.describe())
    measures = {
        "inf": _measure_inf,
        "kernel": _measure_kernel,
        "kad": _measure_kad,
        "coverage": _measure_manifold,
        "diversity": _measure_diversity,
        "held_out": _measure_memorisation,
        "per_song": _measure_songs,
        "paired": _measure_pairs,
    }
    for measure in (_measure_fad, *(run for flag, run in measures.items() if vars(pair.settings)[flag])):
        measured, evidence = measure(pair)
        scores |= measured
        details.update(evidence)
    setup: dict[str, object] = {
        "definitions": DEFINITIONS,
        "embedder": pair.identity,
        "reference": reference.fingerprint(),
        "made_by": generated.made_by,
        "unit": pair.settings.unit,
        "seed": pair.settings.seed,
    }
    if pair.settings.paired:
        setup["kl_direction"] = pair.settings.kl_direction
    subject = Subject(name=generated.source, reference=reference.source, embedder=pair.name, **generated.describe())
    return Result(subject, setup, scores, details)


def _measure_fad(pair: SetPair) -> tuple[Scores, Details]:
    """Compute the interval of the distance between the laws of both sets, without the bias of few files."""
    if pair.generated.files is None:
        return {}, {}
    if (width := len(pair.generated.gaussian.mean)) > MOST_DIMENSIONS:
        logger.info("%s: no interval of fad for vectors of %d numbers", pair.generated.source, width)
        return {}, {}
    found = pair.sides.estimate(pair.settings.seed)
    if found is None:
        return {}, {}
    low, high = found.interval()
    return {"fad_low": max(0.0, low), "fad_high": max(0.0, high)}, {"fad": asdict(found)}


def _measure_inf(pair: SetPair) -> tuple[Scores, Details]:
    line = extrapolate(pair.sides, pair.settings.seed)
    scores: Scores = {"fad_inf": line.value, "fad_inf_r2": line.r2}
    found = pair.sides.estimate(pair.settings.seed)
    if found is not None:
        scores["fad_inf_low"], scores["fad_inf_high"] = found.interval(line.value, line.error)
    return scores, {"fad_inf": asdict(line)}


def _measure_kernel(pair: SetPair) -> tuple[Scores, Details]:
    found = kernel_distance(pair.reference.file_vectors, pair.generated.file_vectors, pair.settings.seed)
    scores: Scores = {"kernel_distance": found.value, "kernel_low": found.low, "kernel_high": found.high}
    return scores, {"kernel_distance": asdict(found)}


def _measure_kad(pair: SetPair) -> tuple[Scores, Details]:
    """Compute kadtk's number, and the same kernel without pairs of one file, with an interval."""
    sets = pair.reference.file_vectors, pair.generated.file_vectors
    found = kernel_distance(*sets, pair.settings.seed, kernel="gaussian")
    scores: Scores = {"kad": kad(pair.reference.vectors, pair.generated.vectors)}
    for key, value in (("kad_files", found.value), ("kad_files_low", found.low), ("kad_files_high", found.high)):
        scores[key] = None if value is None else 100 * value
    return scores, {"kad": asdict(found)}


def _measure_manifold(pair: SetPair) -> tuple[Scores, Details]:
    vectors = pair.reference.embedded.vectors, pair.generated.embedded.vectors
    scores: Scores = {}
    intervals = manifold_intervals(*vectors, seed=pair.settings.seed)
    for name, value in manifold_scores(*vectors).items():
        scores[name] = value
        if name in intervals:
            scores[f"{name}_low"], scores[f"{name}_high"] = intervals[name]
    return scores, {}


def _measure_diversity(pair: SetPair) -> tuple[Scores, Details]:
    sets = {"vendi": pair.generated, "vendi_reference": pair.reference}
    return {name: vendi_score(one.embedded.vectors) for name, one in sets.items()}, {}


def _measure_memorisation(pair: SetPair) -> tuple[Scores, Details]:
    assert pair.held_out is not None
    training, held_out, generated = (
        {name: mean_vector(frames) for name, frames in one.embedded.frames.items()}
        for one in (pair.reference, pair.held_out, pair.generated)
    )
    found = memorisation(training, held_out, generated, pair.settings.seed)
    listed: list[dict[str, object]] = [
        {"file": name, "training_file": nearest, "distance_ratio": ratio}
        for name, (nearest, ratio) in list(found.nearest.items())[:_MOST_LISTED]
    ]
    scores: Scores = {
        "memorisation": found.value,
        "memorisation_low": found.low,
        "memorisation_high": found.high,
    }
    return scores, {"memorisation": listed}


def _measure_songs(pair: SetPair) -> tuple[Scores, Details]:
    """Compute the distance of each file alone, largest first; a file of one frame has no covariance."""
    generated = pair.generated
    enough = {name: frames for name, frames in generated.embedded.frames.items() if len(frames) > 1}
    found = {name: frechet_distance(pair.reference.gaussian, gaussian_of(frames)) for name, frames in enough.items()}
    left_out = [name for name in generated.embedded.frames if name not in enough]
    if left_out:
        logger.warning(
            "%s: %d files have a single frame and therefore no individual distance, such as %s",
            *(generated.source, len(left_out), left_out[0]),
        )
    return {}, {"per_song": dict(sorted(found.items(), key=lambda song: -song[1])), "per_song_left_out": left_out}


def _measure_pairs(pair: SetPair) -> tuple[Scores, Details]:
    if not (pair.reference.paths and pair.generated.paths):
        raise UserError("--paired compares audio files; give folders of audio for both sets")
    scores, record = reconstruction_scores(pair.reference, pair.generated)
    details = Details(paired=record)
    if pair.embedder().gives_logits:
        divergences = _divergences(pair)
        scores["kl"], details["kl_pairs"] = float(divergences.mean()), len(divergences)
        if len(divergences) > 1:
            error = float(divergences.std(ddof=1)) / np.sqrt(len(divergences))
            reach = float(stats.t.ppf((1 + LEVEL) / 2, len(divergences) - 1)) * error
            scores["kl_low"], scores["kl_high"] = scores["kl"] - reach, scores["kl"] + reach
    return scores, details


def _divergences(pair: SetPair) -> NDArray[np.float64]:
    return np.array(list(pair_divergences(pair.reference, pair.generated, pair.settings.kl_direction).values()))


# ------------------------------------------------------------------ significance


def compare_pairs(a: SetPair, b: SetPair) -> list[SetComparison]:
    """Compare two generated sets by paired bootstrap over their files of the same name."""
    sets = a.generated.embedded.frames, b.generated.embedded.frames
    names = [name for name in sets[0] if name in sets[1]]
    if len(names) < 2:
        raise UserError(
            f"--significance compares files of the same name; {a.generated.source} and {b.generated.source} share "
            f"{len(names)}"
        )
    shared = [
        FeatureSet(
            pair.generated.source,
            type(pair.generated.embedded)({name: frames[name] for name in names}),
            made_by=pair.generated.made_by,
            unit=pair.generated.unit,
            paths={name: path for name, path in pair.generated.paths.items() if name in names},
        )
        for pair, frames in zip((a, b), sets)
    ]
    one, other = (
        SetPair(pair.reference, generated, pair.name, pair.embedder, pair.settings)
        for pair, generated in zip((a, b), shared)
    )
    settings = a.settings
    rows = [("fad", _difference(one.sides.distance, other.sides.distance), one.sides.blocks)]
    if settings.kernel and a.reference.files is not None:
        kernels = [KernelSides(p.reference.file_vectors, p.generated.file_vectors) for p in (one, other)]
        rows.append(("kernel_distance", _difference(*(k.distance for k in kernels)), kernels[0].files))
    if settings.paired and a.embedder().gives_logits:
        gaps = _divergences(one) - _divergences(other)

        def mean_gap(references: Weights, pairs: Weights) -> NDArray[np.float64]:
            return np.array([gaps @ pairs / pairs.sum()])

        rows.append(("kl", mean_gap, (0, len(gaps))))
    comparisons = []
    for score, difference, blocks in rows:
        found = compare_paired(difference, *blocks, settings.seed, settings.resamples)
        comparisons.append(
            SetComparison(
                a.name,
                a.reference.source,
                a.generated.source,
                b.generated.source,
                score,
                len(names),
                found.difference,
                found.low,
                found.high,
                found.share_below,
                found.p,
            )
        )
    return comparisons


def _difference(a: TwoSets, b: TwoSets) -> TwoSets:
    return lambda references, pairs: a(references, pairs) - b(references, pairs)
