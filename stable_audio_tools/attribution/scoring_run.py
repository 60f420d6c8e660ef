"""What `dtrak_score.py` does: features from their files, checked against each other, to a matrix of scores."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution.features import join_features, read_features
from stable_audio_tools.attribution.results import Scores, source_of
from stable_audio_tools.attribution.scoring import (
    Member,
    ScoreOptions,
    default_regulariser,
    is_relative,
    score_by_products,
    score_ensemble,
)
from stable_audio_tools.attribution.settings import FeatureSets, ScoreSettings
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.evaluation.embedders import create_embedder
from stable_audio_tools.evaluation.embedding import embed_files

logger = logging.getLogger(__name__)


def random_scores(queries: int, items: int, seed: int = 0) -> Tensor:
    """Return standard normal scores (q, n)."""
    return torch.randn(queries, items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(queries: Tensor, items: Tensor) -> Tensor:
    """Return cosines (q, n) of embeddings (q, e) and (n, e), centred by the mean of the items."""
    centre = items.double().mean(0)
    return F.normalize(queries.double() - centre, dim=1) @ F.normalize(items.double() - centre, dim=1).T


def embedding_similarity(
    queries: Sequence[str], items: Sequence[str], embedder: str, cache_dir: str | Path, device: str = "cpu"
) -> Tensor:
    """Return similarities (q, n) of audio files by an embedder of `evaluation`: "clap", or "logmel" without weights.

    Latents are represented by the whole file that they were encoded from.
    """
    sources = {name: source_of(name) or name for name in (*queries, *items)}
    files = {source: Path(source) for source in sources.values()}
    embeddings = embed_files(create_embedder(embedder).to(device), files, cache_dir)
    if embeddings is None:
        raise AudioError("another process is still embedding these files; start again when it is done")
    if embeddings.failed:
        name, reason = next(iter(embeddings.failed.items()))
        raise AudioError(
            f"{name}: cannot be embedded ({reason}); similarity needs the audio of every item, and for latents "
            "the file given as path in the .json beside them"
        )
    vectors = dict(zip(embeddings.names, torch.from_numpy(embeddings.vectors)))
    sides = (torch.stack([vectors[sources[name]] for name in names]) for names in (queries, items))
    return similarity(*sides)


def read_members(settings: FeatureSets) -> list[Member]:
    """Read the features of every checkpoint, seed or projection."""
    metas: Sequence[str | None] = settings.train_meta_paths or [None] * len(settings.train_feature_paths)
    if len(metas) != len(settings.train_feature_paths):
        raise ConfigError(
            f"--train-meta-paths: {len(metas)} files for {len(settings.train_feature_paths)} --train-feature-paths"
        )
    train = join_features([read_features(path, meta) for path, meta in zip(settings.train_feature_paths, metas)])
    if len(metas) > 1:
        train = replace(train, source=f"{train.source} and {len(metas) - 1} more")
    members = [Member(train, read_features(settings.query_feature_path, settings.query_meta_path))]
    return members + [Member(read_features(train), read_features(query)) for train, query in settings.also]


def score(settings: ScoreSettings) -> Scores:
    """Compute the scores of every training item for every query."""
    members = read_members(settings)
    first = members[0]
    regulariser = settings.lambda_reg
    if settings.method == "ridge" and regulariser is None:
        regulariser = default_regulariser(first, _options(settings))
        logger.info("lambda %.3g was chosen from the training features", regulariser)
    values = _values(settings, members, regulariser)
    about = {
        "method": settings.method,
        "lambda_reg": regulariser,
        "lambda_from": "features" if settings.lambda_reg is None else "settings",
        "lambda_scale": "relative" if is_relative(first, settings.lambda_scale) else "absolute",
        "used_dim": first.width(settings.used_dim),
        "negate": settings.negate,
        "members": len(members),
        "f": first.train.meta.get("f"),
        "weights": first.train.meta.get("weights"),
    }
    return Scores((-values if settings.negate else values).numpy(), first.query.ids, first.train.ids, about)


def _options(settings: ScoreSettings) -> ScoreOptions:
    device = pick_device(settings.device)
    return ScoreOptions(settings.lambda_scale, settings.used_dim, device, settings.query_batch_size)


def _values(settings: ScoreSettings, members: Sequence[Member], regulariser: float | None) -> Tensor:
    first, options = members[0], _options(settings)
    if regulariser is not None and settings.method == "ridge":
        return score_ensemble(members, [regulariser], options)[0]
    if settings.method in ("dot", "cosine"):
        return score_by_products(members, settings.method == "cosine", options)
    if settings.method == "random":
        return random_scores(len(first.query), len(first.train), settings.seed)
    queries, items = first.query.ids, first.train.ids
    return embedding_similarity(queries, items, settings.embedder, settings.embedding_cache, str(options.device))
