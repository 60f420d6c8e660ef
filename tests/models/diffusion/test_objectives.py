"""Objectives: corruption and prediction are inverse, t = 0 is data, the shift's published values."""

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.inference.sampling.samplers import find_sampler, samplers_for
from stable_audio_tools.models.diffusion.distribution_shift import DistributionShift
from stable_audio_tools.models.diffusion.objectives import (
    DistilledFlowObjective,
    FlowObjective,
    parse_objective,
)
from stable_audio_tools.models.dit import DiffusionTransformer

OBJECTIVES = [parse_objective(name) for name in ("v", "rectified_flow", "rf_denoiser")]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_target_tells_data_and_noise(objective):
    data, noise = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 5).double()
    x, target = objective.corrupt(data, noise, t)
    torch.testing.assert_close(objective.predict_data(x, target, t), data)
    torch.testing.assert_close(objective.predict_noise(x, target, t), noise)
    torch.testing.assert_close(x[0], data[0])
    torch.testing.assert_close(x[-1], noise[-1])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_ratios(objective):
    t = torch.linspace(0.01, 0.99, 9).double()
    alpha, sigma = objective.mix(t)
    torch.testing.assert_close(objective.ratio(t), sigma / alpha)
    torch.testing.assert_close(objective.time(objective.ratio(t)), t)


def test_the_shift_moves_times_towards_noise_the_more_the_longer():
    shift = DistributionShift()
    half = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(shift.time_shift(half, 1024), torch.tensor([0.0, 0.6525, 1.0]), atol=1e-4, rtol=0)
    middles = [shift.time_shift(half, length)[1].item() for length in (64, 256, 1024, 4096, 9999)]
    assert middles[0] == middles[1] < middles[2] < middles[3] == middles[4]


def test_a_shift_between_equal_lengths_is_refused():
    with pytest.raises(ValueError, match="max_length is 256; it must be more than min_length, which is 256"):
        DistributionShift(max_length=256)


def test_the_published_attribute_is_the_name_and_may_be_set() -> None:
    transformer = DiffusionTransformer(io_channels=2, embed_dim=8, depth=1, num_heads=1)
    assert transformer.diffusion_objective == "v"
    transformer.diffusion_objective = "rf_denoiser"
    assert transformer.objective == DistilledFlowObjective()
    assert transformer.diffusion_objective in ("rectified_flow", "rf_denoiser")


def test_samplers_suit_the_subclasses_of_their_objectives() -> None:
    class Halved(FlowObjective):
        name = "halved"

        def loss_weight(self, t: torch.Tensor) -> torch.Tensor:
            return torch.full_like(t, 0.5)

    assert samplers_for(Halved()) == samplers_for("rectified_flow")
    with pytest.raises(ValueError, match="is not for a model with the objective 'halved'; use euler"):
        find_sampler("ddpm", Halved())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no objective named 'w'"):
        parse_objective("w")
