"""Scores against a direct solve in float64, by every path to them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stable_audio_tools.attribution.features import Features
from stable_audio_tools.attribution.scoring import (
    DEFAULT_GRID,
    Member,
    RidgeScorer,
    Rows,
    ScoreOptions,
    score_by_products,
    score_ensemble,
    score_member,
)
from stable_audio_tools.attribution.scoring_run import ScoreSettings
from stable_audio_tools.core.errors import ConfigError


def features(count: int, dim: int, name: str, seed: int, **about: object) -> Features:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    meta = {"weights": "w", "proj_dim": dim, "projection": "normal", **about}
    return Features(rows, tuple(f"{name}{n}" for n in range(count)), meta, name)


def direct(train: Features, query: Features, regulariser: float) -> np.ndarray:
    phi, q = train.rows.astype(np.float64), query.rows.astype(np.float64)
    return q @ np.linalg.inv(phi.T @ phi + regulariser * np.eye(phi.shape[1])) @ phi.T


@pytest.mark.parametrize(("count", "dim"), [(40, 12), (12, 40)], ids=["many items", "many numbers"])
def test_every_path_is_the_direct_solve(count: int, dim: int) -> None:
    """Primal and dual, Cholesky and eigendecomposition, for every regulariser of the grid."""
    train, query = features(count, dim, "t", 0), features(5, dim, "q", 1)
    queries = torch.from_numpy(query.rows).double()
    for form in ("primal", "dual"):
        scorer = RidgeScorer(Rows(train, dim), form)  # type: ignore[arg-type]
        regularisers = [value * scorer.unit for value in DEFAULT_GRID]
        for value, by_grid in zip(regularisers, scorer.grid(queries, regularisers)):
            wanted = direct(train, query, value)
            assert np.abs(by_grid.numpy() - wanted).max() < 1e-8 * np.abs(wanted).max()
            assert np.abs(scorer.scores(queries, value).numpy() - wanted).max() < 1e-8 * np.abs(wanted).max()


def test_blocks_change_nothing() -> None:
    train, query = features(3000, 8, "t", 0), features(7, 8, "q", 1)
    wanted = direct(train, query, 2.0)
    for at_once in (3, 100):
        found = score_member(Member(train, query), [2.0], ScoreOptions("absolute", queries_at_once=at_once))[0]
        assert np.allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_a_relative_regulariser_means_the_same_at_every_scale() -> None:
    train, query = features(30, 8, "t", 0), features(4, 8, "q", 1)
    small = Features(train.rows * 1e-3, train.ids, train.meta), Features(query.rows * 1e-3, query.ids, query.meta)
    one = score_member(Member(train, query), [0.1])[0]
    assert torch.allclose(score_member(Member(*small), [0.1])[0], one, rtol=1e-4)
    assert not torch.allclose(score_member(Member(*small), [0.1], ScoreOptions("absolute"))[0], one, rtol=1e-1)


def test_the_width_of_foreign_files_is_cut_and_a_sketch_folded() -> None:
    train, query = features(30, 8, "t", 0, projection="sketch"), features(4, 8, "q", 1, projection="sketch")
    folded = [Features(f.rows.reshape(len(f), 2, 4).sum(1), f.ids, f.meta) for f in (train, query)]
    assert np.allclose(score_member(Member(train, query), [1.0], ScoreOptions("absolute", 4))[0], direct(*folded, 1.0))
    cut = [Features(f.rows[:, :4], f.ids, {"proj_dim": 8}) for f in (train, query)]
    foreign = [Features(f.rows, f.ids, {"proj_dim": 8, "used_dim": n}) for f, n in ((train, 4), (query, 6))]
    assert np.allclose(score_member(Member(*foreign), [1.0])[0], direct(*cut, 1.0)), "absolute, by themselves"
    assert Member(*foreign).width() == 4 and Member(*foreign[::-1]).width() == 4, "the smaller of the two"
    with pytest.raises(ConfigError, match="a sketch of 8 folds to its divisors, not to 3"):
        score_member(Member(train, query), [1.0], ScoreOptions(dim=3))
    with pytest.raises(ConfigError, match="--used-dim: expected 1 to 8, got 9"):
        score_member(Member(train, query), [1.0], ScoreOptions(dim=9))


def test_an_ensemble_is_the_mean_in_one_order() -> None:
    members = [Member(features(9, 5, "t", s), features(3, 5, "q", s + 10)) for s in (0, 1)]
    shuffled = [4, 0, 8, 1, 2, 3, 5, 6, 7]
    train = members[1].train
    turned = Features(train.rows[shuffled], tuple(train.ids[n] for n in shuffled), train.meta)
    wanted = sum(score_member(member, [0.1])[0] for member in members) / 2
    assert torch.allclose(score_ensemble([members[0], Member(turned, members[1].query)], [0.1])[0], wanted)
    with pytest.raises(ConfigError, match="differs from the first member"):
        score_ensemble([members[0], Member(features(9, 5, "x", 1), members[1].query)], [0.1])


def test_names_that_are_there_twice_are_told_apart_by_their_place() -> None:
    """As in files of the original scripts."""
    train, query = features(6, 3, "t", 0), features(2, 3, "q", 1)
    ids = ("a", "b", "a", "d", "e", "f")
    twice = Member(Features(train.rows, ids, train.meta, "t"), query)
    wanted = score_ensemble([Member(train, query)], [0.1])[0]
    assert torch.equal(score_ensemble([twice], [0.1])[0], wanted)
    assert torch.allclose(score_ensemble([twice, twice], [0.1])[0], wanted)
    products = score_by_products([Member(train, query)], cosine=False)
    assert torch.equal(score_by_products([twice], cosine=False), products)
    turned = Member(Features(train.rows[::-1].copy(), ids[::-1], train.meta, "turned"), query)
    with pytest.raises(ConfigError, match="turned: names a more than once, in another order"):
        score_ensemble([twice, turned], [0.1])


@pytest.mark.parametrize("side", ["train", "query"])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_is_named(side: str, broken: float) -> None:
    """Also beyond the first block; columns that are not used may hold anything."""
    files = {"train": features(1500, 4, "t", 0), "query": features(1500, 4, "q", 1)}
    files[side].rows[1200, 3] = broken
    member = Member(**files)
    named = f"{side[0]}1200: its feature in {side[0]} holds NaN or infinite numbers"
    with pytest.raises(ConfigError, match=named):
        score_member(member, [0.1])
    with pytest.raises(ConfigError, match=named):
        score_by_products([member], cosine=True)
    assert score_member(member, [0.1], ScoreOptions(dim=3))[0].isfinite().all()


def test_what_is_zero_is_named() -> None:
    train, query = features(9, 5, "t", 0), features(3, 5, "q", 1)
    query.rows[1] = 0
    silent = Features(np.zeros((9, 5), np.float32), train.ids, train.meta, "silent")
    named = r"q1: its feature in q is all zero, so no item can be ranked for it \(1 of 3 queries\)"
    with pytest.raises(ConfigError, match=named):
        score_member(Member(train, query), [0.1])
    for cosine in (True, False):
        with pytest.raises(ConfigError, match=named):
            score_by_products([Member(train, query)], cosine)
        with pytest.raises(ConfigError, match="silent: the training features are all zero"):
            score_by_products([Member(silent, features(3, 5, "q", 1))], cosine)


def test_products() -> None:
    train, query = features(9, 5, "t", 0), features(3, 5, "q", 1)
    wanted = query.rows.astype(np.float64) @ train.rows.astype(np.float64).T
    assert np.allclose(score_by_products([Member(train, query)] * 2, cosine=False), 2 * wanted)
    norms = np.linalg.norm(query.rows, axis=1)[:, None] * np.linalg.norm(train.rows, axis=1)
    assert np.allclose(score_by_products([Member(train, query)], cosine=True), wanted / norms)
    assert np.allclose(score_by_products([Member(train, query)] * 2, cosine=True), wanted / norms), "their mean"


def test_features_that_do_not_match_are_refused(tmp_path: Path) -> None:
    train, query = features(9, 5, "t", 0), features(3, 5, "q", 1, weights="other")
    with pytest.raises(ConfigError, match="t and q cannot be compared: weights 'w' and 'other'"):
        score_member(Member(train, query), [0.1])
    foreign = Features(query.rows, query.ids, {"proj_dim": 5}, "q")
    with pytest.raises(ConfigError, match="cannot be compared: weights 'w' and None"):
        score_member(Member(train, foreign), [0.1])
    nothing = Features(np.zeros((9, 5), np.float32), train.ids, train.meta)
    with pytest.raises(ConfigError, match="the training features are all zero"):
        score_member(Member(nothing, features(3, 5, "q", 1)), [0.1])


@pytest.mark.parametrize("method", ["random", "similarity"])
def test_more_features_are_refused_where_none_are_used(method: str) -> None:
    with pytest.raises(ConfigError, match=f"--also: --method {method} uses no features"):
        ScoreSettings(
            train_feature_paths=("train",), query_feature_path="query", also=(("train_2", "query_2"),), method=method
        )
