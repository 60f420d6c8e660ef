"""What the defaults depend on: the regulariser of the data, the noise levels of training, crops of a track, seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import small_models
from support.small_attribution import ORIGIN, make_samples, write_features

from stable_audio_tools.attribution.features import Features, read_features, require_comparable
from stable_audio_tools.attribution.lds import choose_regulariser, linear_datamodeling_score
from stable_audio_tools.attribution.models import AttributedModel
from stable_audio_tools.attribution.scoring import EFFECTIVE_SHARE, Member, RidgeScorer, Rows, default_regulariser
from stable_audio_tools.attribution.task import DiffusionTask, FeatureRecipe, NoiseLevelLaw, find_measure, loss
from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW
from stable_audio_tools.models.factory import create_model_from_config


def member(rows: np.ndarray, queries: np.ndarray) -> Member:
    about = {"proj_dim": rows.shape[1], "weights": "w"}
    sides = (("t", rows), ("q", queries))
    return Member(
        *(Features(x.astype(np.float32), tuple(f"{n}{i}" for i in range(len(x))), about, n) for n, x in sides)
    )


@pytest.mark.parametrize("shape", [(12, 40), (60, 10)])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_default_regulariser_keeps_a_share_of_the_directions(shape: tuple[int, int], scale: float) -> None:
    rng = np.random.default_rng(0)
    rows = scale * rng.standard_normal(shape) * np.geomspace(1, 0.05, shape[1])
    one = member(rows, rows[:2])
    value = default_regulariser(one)
    kernel = torch.from_numpy(rows.astype(np.float32)).double()
    values = torch.linalg.svdvals(kernel) ** 2
    unit = float(values.sum()) / shape[0]
    dimension = float((values / (values + value * unit)).sum())
    assert dimension == pytest.approx(EFFECTIVE_SHARE * min(shape), rel=1e-6)
    assert value == pytest.approx(default_regulariser(member(rows * 7, rows[:2])), rel=1e-4), "the scale cancels"
    forms = [RidgeScorer(Rows(one.train, shape[1]), form).choose() for form in ("primal", "dual")]
    assert forms[0] == pytest.approx(forms[1], rel=1e-4)


def test_repeated_items_do_not_count_as_directions() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 30))
    doubled = np.concatenate([rows, rows])
    scorer = RidgeScorer(Rows(member(doubled, rows).train, 30), "dual")
    values = torch.linalg.eigvalsh(scorer.matrix)[-6:]
    assert float((values / (values + scorer.choose())).sum()) == pytest.approx(EFFECTIVE_SHARE * 6, rel=1e-4)


LAWS = {
    "logit_normal": ({}, lambda u: torch.sigmoid(torch.special.ndtri(u))),
    "log_snr_uniform": ({"min_logsnr": -2.0, "max_logsnr": 4.0}, lambda u: torch.sigmoid(-(4.0 - 6.0 * u))),
}


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_of_the_training_law(name: str) -> None:
    options, exact = LAWS[name]
    law = NoiseLevelLaw.of_training({"timestep_sampler": name, "timestep_sampler_options": options})
    assert law is not None
    shares = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert (law.quantiles(shares) - exact(shares)).abs().max() < 0.01  # sampling error of 65,536 draws


def test_the_loss_is_averaged_over_the_training_law() -> None:
    """A network that returns the noise level: its mean over the steps is the mean of the law."""

    class Level(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
            return t[:, None, None].expand_as(x)

    sample = make_samples(1)[0]
    steps = [place * 10 for place in range(100)]
    law = NoiseLevelLaw("log_snr", {"mean_logsnr": -3.0, "std_logsnr": 1.0})
    means = []
    for recipe in (FeatureRecipe(find_measure("mean"), steps), FeatureRecipe(find_measure("mean"), steps, law=law)):
        task = DiffusionTask(Level(), RECTIFIED_FLOW, recipe)
        means.append(float(task.values(task.prepare(sample._replace(inputs={}))).mean()))
    torch.manual_seed(1)
    expected = float(torch.sigmoid(-(-3.0 + torch.randn(100_000))).mean())
    assert means[0] == pytest.approx(0.495) and means[1] == pytest.approx(expected, abs=0.003)


def attributed(law: dict) -> AttributedModel:
    config = small_models.narrowed(load(next(small_models.CONFIGS.rglob("tiny_diffusion_cond.json"))))
    config["training"] = {**config.get("training", {}), **law}
    return AttributedModel(create_model_from_config(config), config, torch.device("cpu"))


def test_only_the_loss_follows_the_training_law() -> None:
    model = attributed({"timestep_sampler": "logit_normal"})
    steps = [0, 500]
    task = model.task(FeatureRecipe(loss, steps))
    assert task.recipe.law is not None and task.recipe.law.description == {"type": "logit_normal"}
    assert model.task(FeatureRecipe(find_measure("mean-squared-l2-norm"), steps)).recipe.law is None
    assert attributed({"timestep_sampler": "uniform"}).task(FeatureRecipe(loss, steps)).recipe.law is None


def test_features_under_different_laws_are_not_compared(tmp_path: Path) -> None:
    write_features(tmp_path / "a", ["a", "b"], 0, **ORIGIN)
    write_features(tmp_path / "b", ["a", "b"], 1, **ORIGIN, noise_levels={"type": "logit_normal"})
    with pytest.raises(ConfigError, match="cannot be compared: noise_levels None and"):
        require_comparable(read_features(tmp_path / "a"), read_features(tmp_path / "b"))


def test_several_seeds_enter_value_and_interval() -> None:
    """Outputs of a signal plus noise of the seed: their mean is used, and their spread widens the interval."""
    rng = np.random.default_rng(0)
    membership = (rng.random((32, 12)) < 0.5).astype(float)
    scores = rng.standard_normal((6, 12))
    signal = -(membership @ scores.T)
    noisy = signal[:, None] + 4 * rng.standard_normal((32, 3, 6))
    several = linear_datamodeling_score(scores, membership, noisy)
    of_mean = linear_datamodeling_score(scores, membership, noisy.mean(1))
    assert np.array_equal(several.per_query, of_mean.per_query) and several.mean < 0.95
    assert several.low < of_mean.low, "the interval also covers the choice of seeds"
    equal = linear_datamodeling_score(scores, membership, np.repeat(signal[:, None], 3, axis=1))
    assert equal.mean == pytest.approx(1.0)
    grid = [scores, -scores]
    assert choose_regulariser(grid, [1.0, 2.0], membership, noisy)[0] == 1.0
