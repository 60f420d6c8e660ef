"""Reference sets × generated sets × embedders: every score of every pair, with how it was measured."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders import Embedder, create_embedder
from stable_audio_tools.evaluation.metrics.coverage import density_and_coverage
from stable_audio_tools.evaluation.metrics.extrapolation import extrapolate
from stable_audio_tools.evaluation.metrics.frechet import frechet_distance, gaussian_of, warn_of_few_frames
from stable_audio_tools.evaluation.metrics.kernel import kernel_distance
from stable_audio_tools.evaluation.paired import kl_score, reconstruction_scores
from stable_audio_tools.evaluation.results import Result
from stable_audio_tools.evaluation.sets import FeatureSet, audio_set, folder_of_fadtk, packaged_set
from stable_audio_tools.evaluation.settings import ScoringSettings

logger = logging.getLogger(__name__)


def score_sets(
    references: Sequence[str],
    generated: Sequence[str],
    embedders: Sequence[str],
    cache_dir: Path,
    settings: ScoringSettings,
    device: str = "cpu",
) -> list[Result] | None:
    """A result for each combination; None in a process that is done while others still embed."""
    results: list[Result] = []
    complete = True
    for name in dict.fromkeys(embedders):
        embedder = cache(partial(create_embedder, name, device))
        sets = {
            source: load_set(source, name, embedder, cache_dir, settings)
            for source in dict.fromkeys([*references, *generated])
        }
        ready = {source: found for source, found in sets.items() if found is not None}
        if len(ready) < len(sets):
            complete = False
            continue
        results += [
            score_pair(SetPair(ready[reference], ready[made], name, embedder, settings))
            for reference in dict.fromkeys(references)
            for made in dict.fromkeys(generated)
        ]
    return results if complete else None


def load_set(
    source: str, name: str, embedder: Callable[[], Embedder], cache_dir: Path, settings: ScoringSettings
) -> FeatureSet | None:
    """A file of statistics, what fadtk left, or a folder of audio."""
    if source.endswith(".npz"):
        return packaged_set(source, name.partition(":")[0])
    if settings.read_fadtk:
        found = folder_of_fadtk(source, name.partition(":")[0], settings.unit, settings.limit)
        if found is not None:
            return found
        logger.info("%s: fadtk left nothing of %s there; embedding its audio", source, name)
    work = (settings.batch_size, settings.num_workers)
    return audio_set(source, embedder(), cache_dir, settings.unit, settings.limit, *work)


@dataclass(frozen=True)
class SetPair:
    """Two sets, the embedder of both, and what is asked."""

    reference: FeatureSet
    made: FeatureSet
    name: str
    embedder: Callable[[], Embedder]  # built when audio is embedded: what fadtk left needs no weights
    settings: ScoringSettings

    @property
    def identity(self) -> dict[str, Any]:
        """Of the embedder; its name alone where nothing was embedded here."""
        if self.reference.made_by == self.made.made_by == "fadtk":
            return {"embedder": self.name}
        return self.embedder().identity


def score_pair(pair: SetPair) -> Result:
    """All scores that the settings ask for."""
    reference, made = pair.reference, pair.made
    if reference.made_by != made.made_by:
        logger.warning(
            "the vectors of %s are by %s and those of %s by %s; their windows may differ",
            *(reference.source, reference.made_by, made.source, made.made_by),
        )
    for one in (reference, made):
        warn_of_few_frames(f"{pair.name}: {one.source}", one.gaussian)
    scores: Scores = {"fad": frechet_distance(reference.gaussian, made.gaussian)}
    details: Details = {"reference": reference.describe()}
    for wanted, measure in _MEASURES.items():
        if getattr(pair.settings, wanted):
            measured, more = measure(pair)
            scores |= measured
            details |= more
    setup = {
        "embedder": pair.identity,
        "reference": {key: details["reference"][key] for key in ("made_by", "digest", "vectors")},
        "made_by": made.made_by,
        "unit": pair.settings.unit,
        "seed": pair.settings.seed,
    }
    subject = {"name": made.source, "reference": reference.source, "embedder": pair.name, **made.describe()}
    return Result(subject, setup, scores, details)


Scores = dict[str, float | None]
Details = dict[str, Any]


def _measure_inf(pair: SetPair) -> tuple[Scores, Details]:
    found = extrapolate(pair.reference.gaussian, pair.made.vectors, pair.settings.seed)
    return {"fad_inf": found.value, "fad_inf_r2": found.r2}, {"fad_inf": asdict(found)}


def _measure_kernel(pair: SetPair) -> tuple[Scores, Details]:
    found = kernel_distance(pair.reference.vectors, pair.made.vectors, pair.settings.seed)
    scores: Scores = {"kernel_distance": found.value, "kernel_low": found.low, "kernel_high": found.high}
    return scores, {"kernel_distance": asdict(found)}


def _measure_coverage(pair: SetPair) -> tuple[Scores, Details]:
    """Of the means of files: windows of one file would be each other's nearest neighbours."""
    return asdict(density_and_coverage(pair.reference.embedded.vectors, pair.made.embedded.vectors)), {}


def _measure_songs(pair: SetPair) -> tuple[Scores, Details]:
    """The distance of each file alone, largest first; a file of one frame has no covariance and so no distance."""
    made = pair.made
    enough = {name: frames for name, frames in made.embedded.frames.items() if len(frames) > 1}
    found = {name: frechet_distance(pair.reference.gaussian, gaussian_of(frames)) for name, frames in enough.items()}
    left_out = [name for name in made.embedded.frames if name not in enough]
    if left_out:
        logger.warning(
            "%s: %d files have a single frame and so no distance of their own, such as %s",
            *(made.source, len(left_out), left_out[0]),
        )
    return {}, {"per_song": dict(sorted(found.items(), key=lambda song: -song[1])), "per_song_left_out": left_out}


def _measure_pairs(pair: SetPair) -> tuple[Scores, Details]:
    if not (pair.reference.paths and pair.made.paths):
        raise UserError("--paired compares audio files; give folders of audio for both sets")
    scores, details = reconstruction_scores(pair.reference, pair.made)
    if pair.embedder().gives_logits:
        scores["kl"], details["kl_pairs"] = kl_score(pair.reference, pair.made)
    return scores, {"paired": details}


_MEASURES: dict[str, Callable[[SetPair], tuple[Scores, Details]]] = {
    "inf": _measure_inf,
    "kernel": _measure_kernel,
    "coverage": _measure_coverage,
    "per_song": _measure_songs,
    "paired": _measure_pairs,
}
