"""The table of noise levels: diffusers' own, invertible between its entries, and what is predicted from it."""

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective, betas
from stable_audio_tools.models.diffusion.objectives import VObjective, parse_objective

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_table_is_that_of_diffusers(schedule: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule=SCHEDULES[schedule])
    ours = DDPMObjective(beta_schedule=schedule)
    torch.testing.assert_close(betas(ours).float(), theirs.betas, rtol=2e-5, atol=1e-9)  # theirs are float32
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(ours.mix(t).alpha.square().float(), theirs.alphas_cumprod, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_and_ratios_are_inverse(schedule: str) -> None:
    objective = DDPMObjective(num_train_timesteps=100, beta_schedule=schedule)
    t = torch.cat([torch.linspace(0, 1, 371, dtype=torch.float64), torch.arange(101, dtype=torch.float64) / 100])
    torch.testing.assert_close(objective.time(objective.ratio(t)), t, rtol=0, atol=1e-12)
    assert objective.time(torch.tensor(1e9)) == 1
    alpha, sigma = objective.mix(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (objective.ratio(t[:371]).diff() > 0).all()


def test_networks_are_told_the_entry_of_the_table() -> None:
    objective = DDPMObjective()
    t = torch.arange(1, 1001) / 1000  # float32
    assert torch.equal(objective.position(t), torch.arange(1000.0))
    assert objective.position(torch.tensor([0.0, 0.00155])).tolist() == pytest.approx([0, 0.55])


def test_training_draws_every_entry_alike() -> None:
    objective = DDPMObjective(num_train_timesteps=4)
    drawn = objective.training_times(torch.tensor([0.0, 0.2, 0.25, 0.6, 0.99, 1.0]))
    assert drawn.tolist() == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v"])
def test_what_is_predicted_gives_data_and_noise_back(kind: str) -> None:
    objective = DDPMObjective(prediction_type=kind)
    data, noise = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x, target = objective.corrupt(data, noise, t)
    assert {"epsilon": noise, "sample": data}.get(kind, target) is not None
    torch.testing.assert_close(objective.predict_data(x, target, t), data)
    torch.testing.assert_close(objective.predict_noise(x, target, t), noise)
    torch.testing.assert_close(objective.prediction_for(data, x, t), target)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v"])
def test_min_snr_bounds_the_weight_of_the_data(kind: str) -> None:
    """Whatever is predicted, the weight of the squared error of the data is min(SNR, gamma)."""
    objective = DDPMObjective(prediction_type=kind, min_snr=5.0)
    t = torch.tensor([0.01, 0.2, 0.7], dtype=torch.float64)
    alpha, sigma = objective.mix(t)
    snr = (alpha / sigma) ** 2
    of_data = {"epsilon": snr, "sample": torch.ones_like(snr), "v": snr + 1}[kind]  # d target / d data, squared
    weight = objective.loss_weight(t)
    assert weight is not None
    torch.testing.assert_close(weight * of_data, snr.clamp(max=5.0))
    assert DDPMObjective(prediction_type=kind).loss_weight(t) is None


def test_configs() -> None:
    assert parse_objective("v") == VObjective()
    assert parse_objective({"type": "ddpm", "config": {"prediction_type": "v"}}) == DDPMObjective(prediction_type="v")
    with pytest.raises(ConfigError, match=r"objective.config.beta_end: is 0.02, not above beta_start, 0.03"):
        parse_objective({"type": "ddpm", "config": {"beta_start": 0.03}}, "objective")
    with pytest.raises(ConfigError, match="no objective named 'ddmp'"):
        parse_objective({"type": "ddmp"})
