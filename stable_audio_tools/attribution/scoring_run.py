"""What `dtrak_score.py` does: features from their files, checked against each other, to a matrix of scores."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from stable_audio_tools.attribution.baselines import embedding_similarity, random_scores
from stable_audio_tools.attribution.features import join_features, read_features
from stable_audio_tools.attribution.results import Scores
from stable_audio_tools.attribution.scoring import Member, ScoreOptions, is_relative, score_by_products, score_ensemble
from stable_audio_tools.attribution.settings import FeatureSets, ScoreSettings
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import ConfigError


def read_members(settings: FeatureSets) -> list[Member]:
    """The features of every checkpoint, seed or projection that takes part."""
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
    """Scores of every training item for every query."""
    members = read_members(settings)
    values = _values(settings, members)
    first = members[0]
    about = {
        "method": settings.method,
        "lambda_reg": settings.lambda_reg,
        "lambda_scale": "relative" if is_relative(first, settings.lambda_scale) else "absolute",
        "used_dim": first.width(settings.used_dim),
        "negate": settings.negate,
        "members": len(members),
        "f": first.train.meta.get("f"),
        "weights": first.train.meta.get("weights"),
    }
    return Scores((-values if settings.negate else values).numpy(), first.query.ids, first.train.ids, about)


def _values(settings: ScoreSettings, members: Sequence[Member]) -> Tensor:
    first, device = members[0], pick_device(settings.device)
    options = ScoreOptions(settings.lambda_scale, settings.used_dim, device, settings.query_batch_size)
    if settings.method == "ridge":
        return score_ensemble(members, [settings.lambda_reg], options)[0]
    if settings.method in ("dot", "cosine"):
        return score_by_products(members, settings.method == "cosine", options)
    if settings.method == "random":
        return random_scores(len(first.query), len(first.train), settings.seed)
    queries, items = first.query.ids, first.train.ids
    return embedding_similarity(queries, items, settings.embedder, settings.embedding_cache, str(device))
