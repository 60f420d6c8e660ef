"""From vectors of generated audio to scores against the references."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stable_audio_tools.evaluation.embedders import Frames
from stable_audio_tools.evaluation.metrics.extrapolation import FEWEST_FRAMES, extrapolate
from stable_audio_tools.evaluation.metrics.frechet import frechet_distance, gaussian_of
from stable_audio_tools.evaluation.metrics.kernel import kernel_distance
from stable_audio_tools.evaluation.metrics.pairs import alignment
from stable_audio_tools.evaluation.results import Result
from stable_audio_tools.evaluation.song_describer.generating import CaptionRun

Scores = dict[str, float | None]


def score_captions(
    run: CaptionRun, rows: Sequence[int], vectors: Mapping[int, Frames], subject: Mapping[str, Any]
) -> Result:
    """Distances to all reference tracks, each counted once, and agreement with the captions of `rows`."""
    references, tag = run.references, run.embedder.tag
    made = np.stack([vectors[row] for row in rows])
    tracks = references.audio_embeddings[references.track_rows]
    scores: Scores = {f"{tag}_fad": None, f"{tag}_fad_inf": None, f"{tag}_kernel_distance": None}
    details: dict[str, Any] = {}
    if min(len(made), len(tracks)) > 1:
        known = gaussian_of(tracks)
        found = kernel_distance(tracks, made, run.sampling.seed)
        scores |= {f"{tag}_fad": frechet_distance(known, gaussian_of(made)), f"{tag}_kernel_distance": found.value}
        details["kernel_distance"] = asdict(found)
        if len(made) >= FEWEST_FRAMES:
            line = extrapolate(known, made, run.sampling.seed)
            scores[f"{tag}_fad_inf"], details["fad_inf"] = line.value, asdict(line)
    table = [
        {
            "caption_id": int(references.caption_ids[row]),
            "track_id": int(references.track_ids[row]),
            "prompt": references.prompts[row],
            "seconds": run.seconds(row),
            "seed": run.seed(row),
        }
        for row in rows
    ]
    if references.has_texts:
        agreement = alignment(references.text_embeddings[list(rows)], made)
        scores |= {f"{tag}_alignment_mean": agreement.mean, f"{tag}_alignment_std": agreement.std}
        table = [{**line, "cosine": cosine} for line, cosine in zip(table, agreement.cosines)]
    scores["num_prompts"] = float(len(rows))
    setup = {
        "embedder": dict(references.identity or run.embedder.identity),
        "references": {"digest": references.digest, "tracks": len(tracks)},
        "prompts": len(rows),
        "sampling": run.sampling.describe(),
        "sample_size": run.sample_size,
    }
    return Result(dict(subject), setup, scores, {**details, "prompts": table})
