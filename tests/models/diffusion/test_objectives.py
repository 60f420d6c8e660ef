"""Objectives: corruption and prediction are inverse, t = 0 is data, the shift's published values."""

import pytest
import torch

from stable_audio_tools.models.diffusion.objectives import (
    DistributionShift,
    corrupt,
    mix_at,
    predict_data,
    predict_noise,
    ratio_at,
    time_at_ratio,
)

OBJECTIVES = ["v", "rectified_flow", "rf_denoiser"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_target_tells_data_and_noise(objective):
    data, noise = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 5).double()
    x, target = corrupt(data, noise, t, objective)
    torch.testing.assert_close(predict_data(x, target, t, objective), data)
    torch.testing.assert_close(predict_noise(x, target, t, objective), noise)
    torch.testing.assert_close(x[0], data[0])
    torch.testing.assert_close(x[-1], noise[-1])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ratios(objective):
    t = torch.linspace(0.01, 0.99, 9).double()
    alpha, sigma = mix_at(t, objective)
    torch.testing.assert_close(ratio_at(t, objective), sigma / alpha)
    torch.testing.assert_close(time_at_ratio(ratio_at(t, objective), objective), t)


def test_the_shift_moves_times_towards_noise_the_more_the_longer():
    shift = DistributionShift()
    half = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(shift.time_shift(half, 1024), torch.tensor([0.0, 0.6525, 1.0]), atol=1e-4, rtol=0)
    middles = [shift.time_shift(half, length)[1].item() for length in (64, 256, 1024, 4096, 9999)]
    assert middles[0] == middles[1] < middles[2] < middles[3] == middles[4]


def test_a_shift_between_equal_lengths_is_refused():
    with pytest.raises(ValueError, match="max_length is 256; it must be more than min_length, which is 256"):
        DistributionShift(max_length=256)
