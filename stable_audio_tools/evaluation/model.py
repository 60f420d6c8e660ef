"""Evaluation of a model: audio for a set of prompts, its scores against a reference and earlier runs, and one page."""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import numpy as np
from scipy import stats

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.evaluation.embedders import TextEmbedder, create_embedder
from stable_audio_tools.evaluation.metrics.pairs import alignment
from stable_audio_tools.evaluation.metrics.resampling import LEVEL
from stable_audio_tools.evaluation.report import as_csv, as_html, rows_of
from stable_audio_tools.evaluation.results import write_results
from stable_audio_tools.evaluation.scoring import Scored, load_set, score_sets
from stable_audio_tools.evaluation.settings import ScoringSettings

AUDIO, MANIFEST = "audio", "manifest.jsonl"


class ClipRecord(TypedDict, total=False):
    """A generated file, its prompt and how well they agree."""

    file: str
    prompt: str
    seed: int
    cosine: float
    copies: str  # recordings of the training set that share a passage with it


@dataclass(frozen=True)
class ModelScores:
    """Scores of the generated files, and the files themselves."""

    scored: Scored
    clips: list[ClipRecord]


def read_clips(folder: Path) -> list[JsonObject]:
    """Read the manifest of generated files."""
    path = folder / MANIFEST
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the output folder of an earlier run"
        ) from None


def score_model(
    folder: Path,
    references: Sequence[str],
    earlier: Sequence[Path],
    embedders: Sequence[str],
    cache_dir: Path,
    settings: ScoringSettings,
    device: str = "cpu",
) -> ModelScores | None:
    """Score the generated files in `folder`; None in a process that finishes while others still embed.

    With earlier runs, the generated files are compared with theirs by paired bootstrap over the prompts.
    """
    records = read_clips(folder / AUDIO)
    audio = [str(folder / AUDIO), *(str(run / AUDIO) for run in earlier)]
    for run in earlier:
        read_clips(run / AUDIO)
    if earlier:
        settings = replace(settings, significance=True)
    scored = score_sets(references, audio, embedders, cache_dir, settings, device)
    if scored is None:
        return None
    clips = [ClipRecord(file=record["file"], prompt=_prompt(record), seed=record.get("seed", 0)) for record in records]
    prompts = {clip["file"]: clip["prompt"] for clip in clips}
    for clip, record in zip(clips, records):
        if "copy_check" in record:
            clip["copies"] = ", ".join(dict.fromkeys(copy["track"] for copy in record.get("copies", ())))
    checked = [bool(clip["copies"]) for clip in clips if "copies" in clip]
    copied: dict[str, float | None] = {"copied_share": sum(checked) / len(checked)} if checked else {}
    results = []
    for result in scored.results:
        setup: dict[str, object] = {**result.setup, "prompts": _digest(sorted(prompts.values()))}
        if result.subject["name"] == audio[0]:
            setup["generation"] = _shared_settings(records)
            agreement = _agreement(result.subject["embedder"], audio[0], prompts, cache_dir, settings, device)
            for clip in clips:
                if clip["file"] in agreement:
                    clip["cosine"] = agreement[clip["file"]]
            result = replace(result, scores={**result.scores, **_mean_agreement(list(agreement.values())), **copied})
        results.append(replace(result, setup=setup))
    return ModelScores(Scored(results, scored.comparisons), clips)


def write_page(folder: Path, found: ModelScores) -> None:
    """Write scores.json, scores.csv, prompts.csv and index.html with a player for every file."""
    results, comparisons = found.scored.results, found.scored.comparisons
    write_results(folder / "scores.json", results, comparisons)
    write_text(folder / "scores.csv", as_csv(rows_of(results)))
    write_text(folder / "prompts.csv", as_csv([dict(clip) for clip in found.clips]))
    rows = ""
    for clip in found.clips:
        source = quote(f"{AUDIO}/{clip['file']}")
        cosine = f"{clip['cosine']:.3f}" if "cosine" in clip else ""
        player = f'<audio controls preload="none" src="{source}"></audio>'
        rows += f"<tr><td>{html.escape(clip['prompt'])}<td>{clip['seed']}<td>{cosine}<td>{player}"
    players = f"<h2>Generated audio</h2><table><tr><th>prompt<th>seed<th>cosine<th>audio{rows}</table>"
    write_text(folder / "index.html", as_html(results, comparisons, players))


def _prompt(record: JsonObject) -> str:
    conditions = record.get("conditions", {})
    return str(conditions.get("prompt", record.get("prompt", "")))


def _shared_settings(records: Sequence[JsonObject]) -> dict[str, object]:
    """Return the settings that all files have in common: model, weights and sampling."""
    first, *others = records
    apart = {"file", "seed", "software", "seconds_made"}
    return {
        key: value
        for key, value in first.items()
        if key not in apart and all(other.get(key) == value for other in others)
    }


def _agreement(
    name: str,
    source: str,
    prompts: Mapping[str, str],
    cache_dir: Path,
    settings: ScoringSettings,
    device: str,
) -> dict[str, float]:
    """Return the cosine of each file and its prompt; {} if the embedder takes no texts."""
    embedder = create_embedder(name, device)
    if not isinstance(embedder, TextEmbedder):
        return {}
    generated = load_set(source, name, lambda: embedder, cache_dir, settings)  # from the cache
    assert generated is not None, "score_sets has embedded every file"
    frames = generated.embedded.frames
    known = [file for file in prompts if prompts[file] and file in frames]
    if not known:
        return {}
    texts = embedder.embed_texts([prompts[file] for file in known])
    return dict(zip(known, alignment(texts, [frames[file] for file in known]).cosines))


def _mean_agreement(cosines: Sequence[float]) -> dict[str, float | None]:
    if not cosines:
        return {}
    scores: dict[str, float | None] = {"alignment_mean": float(np.mean(cosines))}
    if len(cosines) > 1:
        error = float(np.std(cosines, ddof=1)) / len(cosines) ** 0.5
        reach = float(stats.t.ppf((1 + LEVEL) / 2, len(cosines) - 1)) * error
        mean = float(np.mean(cosines))
        scores |= {"alignment_low": mean - reach, "alignment_high": mean + reach}
    return scores


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(prompts).encode(), digest_size=6).hexdigest()
