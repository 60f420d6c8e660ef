"""The linear datamodeling score against cases whose value is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stable_audio_tools.attribution.features import Features
from stable_audio_tools.attribution.lds import choose_regulariser, linear_datamodeling_score
from stable_audio_tools.attribution.scoring import DEFAULT_GRID, Member, score_member
from stable_audio_tools.attribution.validation import (
    compare_removals,
    gather_outputs,
    make_plan,
    read_outputs,
    read_plan,
    read_queries,
    save_plan,
    save_removals,
    write_outputs,
)
from stable_audio_tools.core.errors import ConfigError

ITEMS = [f"item{n}" for n in range(40)]


def test_scores_that_are_the_truth_score_one() -> None:
    """Outputs that are sums over the items of a subset."""
    plan = make_plan(ITEMS, 16, 0.5)
    effects = np.random.default_rng(0).standard_normal((5, len(ITEMS)))
    outputs = -plan.membership() @ effects.T
    found = linear_datamodeling_score(effects, plan.membership(), outputs)
    assert found.mean == pytest.approx(1) and found.low > 0.99
    turned = linear_datamodeling_score(effects, plan.membership(), outputs, f_is_loss=False)
    assert turned.mean == pytest.approx(-1) and found.minus(turned).mean == pytest.approx(2)


def test_it_is_spearman_for_each_query() -> None:
    rng = np.random.default_rng(0)
    plan = make_plan(ITEMS, 12, 0.5)
    scores, outputs = rng.standard_normal((3, len(ITEMS))), rng.standard_normal((12, 3)).round(1)
    predicted = -plan.membership() @ scores.T
    wanted = [stats.spearmanr(predicted[:, q], outputs[:, q]).statistic for q in range(3)]
    found = linear_datamodeling_score(scores, plan.membership(), outputs)
    assert np.allclose(found.per_query, wanted)
    assert found.low <= found.mean <= found.high and str(found).startswith(f"{found.mean:.3f} [")


def test_an_exactly_linear_model_scores_above_95_percent() -> None:
    """Ridge regression, solved exactly on every subset: its loss on a query against TRAK's scores from gradients.

    The gradient of item i at the solution is residual times input; the output whose gradient is the input (the
    prediction) makes scores of what each item adds to it, which for a linear model is nearly exact.
    """
    rng = np.random.default_rng(1)
    inputs, queries = rng.standard_normal((60, 6)), rng.standard_normal((12, 6))
    targets = inputs @ rng.standard_normal(6) + 0.5 * rng.standard_normal(60)
    ridge = 1e-3

    def solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x.T @ x + ridge * np.eye(6), x.T @ y)

    names = [f"item{n}" for n in range(60)]
    plan = make_plan(names, 32, 0.8)
    outputs = np.stack([queries @ solve(inputs[list(s)], targets[list(s)]) for s in plan.subsets])
    residuals = targets - inputs @ solve(inputs, targets)
    about = {"weights": "w", "proj_dim": 6}
    train = Features(inputs.astype(np.float32), tuple(names), about)
    query = Features(queries.astype(np.float32), tuple(f"q{n}" for n in range(12)), about)
    scores = score_member(Member(train, query), [1e-6])[0].numpy() * residuals
    found = linear_datamodeling_score(scores, plan.membership(), outputs, f_is_loss=False)
    assert found.mean > 0.95 and found.low > 0.9


def test_random_scores_score_nothing() -> None:
    rng = np.random.default_rng(0)
    plan = make_plan(ITEMS, 16, 0.5)
    outputs = -plan.membership() @ rng.standard_normal((20, len(ITEMS))).T
    found = linear_datamodeling_score(rng.standard_normal((20, len(ITEMS))), plan.membership(), outputs)
    assert found.low < 0 < found.high


def test_the_regulariser_of_the_best_score_is_chosen() -> None:
    rng = np.random.default_rng(0)
    plan = make_plan(ITEMS, 16, 0.5)
    truth = rng.standard_normal((4, len(ITEMS)))
    outputs = -plan.membership() @ truth.T
    grid = [truth + noise * rng.standard_normal(truth.shape) for noise in (5, 0.1, 2)]
    best, observed = choose_regulariser(grid, DEFAULT_GRID[:3], plan.membership(), outputs)
    assert best == DEFAULT_GRID[1] and observed[1] == max(observed)


def test_plans_are_repeatable_and_keep_shares_of_labels(tmp_path: Path) -> None:
    labels = {name: "rare" if n < 4 else "common" for n, name in enumerate(ITEMS)}
    plan = make_plan(ITEMS, 8, 0.5, seed=3, labels=labels)
    assert all(sum(place < 4 for place in subset) == 2 and len(subset) == 20 for subset in plan.subsets)
    assert len(set(plan.subsets)) == 8 and make_plan(ITEMS, 8, 0.5, seed=3, labels=labels) == plan
    assert make_plan(ITEMS, 4, 0.5, seed=3, labels=labels).subsets == plan.subsets[:4], "more can be added later"
    save_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    listed = (tmp_path / "subset_002.txt").read_text().splitlines()
    assert listed == [str(Path(ITEMS[place]).absolute()) for place in plan.subsets[2]]


def test_every_item_is_in_its_share_of_the_subsets_whatever_the_size_of_its_label() -> None:
    sizes = {"one": 1, "other": 1, "three": 3, "five": 5, "many": 27}
    labels = dict(zip(ITEMS, [name for name, size in sizes.items() for _ in range(size)]))
    names = list(labels)
    plan = make_plan(names, 600, 0.5, labels=labels)
    assert {len(subset) for subset in plan.subsets} == {round(len(names) * 0.5)}
    share = plan.membership().mean(0)
    assert np.abs(share - round(len(names) * 0.5) / len(names)).max() < 0.1  # five standard errors of 600 subsets
    for name, size in sizes.items():
        places = [place for place, item in enumerate(names) if labels[item] == name]
        counts = plan.membership()[:, places].sum(1)
        assert counts.min() >= size // 2 and counts.max() <= -(-size // 2) + (size == 27), "its share, rounded"
    assert make_plan(names, 4, 0.5, labels=labels).subsets == plan.subsets[:4]


def test_a_plan_without_labels_is_what_it_was() -> None:
    recorded = [(1, 6, 7, 8, 9), (0, 2, 6, 8, 9), (1, 3, 5, 6, 7), (0, 2, 3, 6, 9)]
    assert list(make_plan(ITEMS[:10], 4, 0.5, seed=3).subsets) == recorded


def test_a_plan_grows_and_is_not_exchanged(tmp_path: Path) -> None:
    save_plan(make_plan(ITEMS, 4), tmp_path)
    longer = make_plan(ITEMS, 6)
    save_plan(longer, tmp_path)
    save_plan(longer, tmp_path)
    assert read_plan(tmp_path) == longer and len(list(tmp_path.glob("subset_*.txt"))) == 6
    for other in (make_plan(ITEMS, 6, seed=1), make_plan(ITEMS, 4), make_plan(ITEMS[::-1], 6)):
        with pytest.raises(ConfigError, match=r"holds another plan, of 6 subsets of 40 items; choose another --folder"):
            save_plan(other, tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ConfigError, match=r"subset_000\.txt: already holds another list; choose another --folder"):
        save_plan(make_plan(ITEMS, 6, seed=1), tmp_path)


def test_a_query_has_its_correlation_and_an_interval() -> None:
    """One query is predicted, the other is noise; the interval tells them apart, and holds for differences, too."""
    rng = np.random.default_rng(0)
    plan = make_plan(ITEMS, 24)
    scores = rng.standard_normal((2, len(ITEMS)))
    outputs = -plan.membership() @ scores.T
    outputs[:, 1] = rng.standard_normal(24)
    found = linear_datamodeling_score(scores, plan.membership(), outputs)
    (low, high), (noise_low, noise_high) = found.intervals
    assert low > 0.99 and high <= 1 + 1e-12 and noise_low < 0 < noise_high
    turned = linear_datamodeling_score(-scores, plan.membership(), outputs)
    assert found.minus(turned).intervals[0] == pytest.approx([2, 2], abs=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    plan = make_plan(ITEMS, 4)
    scores, outputs = np.ones((2, len(ITEMS))), np.arange(8.0).reshape(4, 2)
    broken = outputs.copy()
    broken[2, 1] = value
    with pytest.raises(ConfigError, match=f"the output of model 2 for query 1 is {value:g}"):
        linear_datamodeling_score(scores, plan.membership(), broken)
    scores[1] = value
    with pytest.raises(ConfigError, match=r"the sum of scores of model 0 for query 1 is"):
        choose_regulariser([scores], [1.0], plan.membership(), outputs)
    with pytest.raises(ConfigError, match="--scores: the scores of b and 0 more queries are not all finite"):
        save_removals(scores, ITEMS, ["a", "b"], tmp_path, 3)
    write_outputs(tmp_path / "subset_003.csv", ["a", "b"], [1.0, value])
    with pytest.raises(ConfigError, match=rf"subset_003\.csv: the output for b and 0 more queries is {value:g}"):
        gather_outputs([tmp_path / "subset_003.csv"], ["a"])


def test_removals(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((2, 10))
    names = [f"item{n}" for n in range(10)]
    paths = save_removals(scores, names, ["a", "b"], tmp_path, top_k=3)
    lists = [f"query_00{n}_{kind}.txt" for n in (0, 1) for kind in ("named", "random")]
    assert [path.name for path in paths] == ["whole.txt", *lists]
    whole, named, chance = ({Path(line).name for line in path.read_text().splitlines()} for path in paths[:3])
    best = {names[place] for place in np.argsort(-scores[0])[:3]}
    assert whole == set(names) and named == set(names) - best and len(chance) == 7 and best <= chance
    for number, (kind, value) in enumerate([("named", 3.0), ("random", 1.5)] * 2):
        write_outputs(tmp_path / "outputs" / f"query_00{number // 2}_{kind}.csv", ["a", "b"], [value, value])
    write_outputs(tmp_path / "outputs" / "whole.csv", ["a", "b"], [1.0, 1.0])
    found = compare_removals(tmp_path, read_queries(tmp_path))
    assert [(removal.query, removal.named, removal.chance) for removal in found] == [("a", 2.0, 0.5), ("b", 2.0, 0.5)]
    absolute = compare_removals(tmp_path, [str(Path("a").absolute())])
    assert absolute[0].named == 2.0, "a relative path names the same file"
    with pytest.raises(
        ConfigError, match=r"whole\.csv: holds no output for c and 0 more queries, but for .*a and others"
    ):
        compare_removals(tmp_path, ["c"])
    with pytest.raises(ConfigError, match=r"query_000_named\.txt: already holds another list"):
        save_removals(scores, names, ["a", "b"], tmp_path, top_k=2)
    with pytest.raises(ConfigError, match=r"queries\.json: names other queries than --scores"):
        save_removals(scores, names, ["a", "c"], tmp_path, top_k=3)
    (tmp_path / "queries.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds no list of queries; write it with dtrak_validate\.py make-removals"):
        read_queries(tmp_path)


def test_outputs_survive_names_with_commas_and_quotes(tmp_path: Path) -> None:
    names = ['one, "two".wav', "plain.wav"]
    write_outputs(tmp_path / "one.csv", names, [0.1, 1e-17])
    assert read_outputs(tmp_path / "one.csv") == dict(zip(names, [0.1, 1e-17]))
    assert gather_outputs([tmp_path / "one.csv"], names[::-1]).tolist() == [[1e-17, 0.1]]


def test_mistakes_end_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--fraction: expected more than 0 and less than 1, got 1"):
        make_plan(ITEMS, 8, 1.0)
    with pytest.raises(ConfigError, match="--num-subsets: expected at least 4, got 2"):
        make_plan(ITEMS, 2)
    with pytest.raises(ConfigError, match="is none of them"):
        make_plan(ITEMS[:1], 4, 0.2)
    with pytest.raises(ConfigError, match="--top-k: expected 1 to half of the 40"):
        save_removals(np.zeros((1, 40)), ITEMS, ["q"], tmp_path, 30)
    with pytest.raises(ConfigError, match=r"cannot be read .*measure them first"):
        read_outputs(tmp_path / "missing.csv")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="columns query and output"):
        read_outputs(tmp_path / "bad.csv")
    write_outputs(tmp_path / "good.csv", ["a"], [1.0])
    with pytest.raises(ConfigError, match="holds no output for b and 0 more"):
        gather_outputs([tmp_path / "good.csv"], ["a", "b"])
    with pytest.raises(ConfigError, match="3 models and 1 queries were measured"):
        linear_datamodeling_score(np.zeros((1, 40)), make_plan(ITEMS, 4).membership(), np.zeros((3, 1)))
