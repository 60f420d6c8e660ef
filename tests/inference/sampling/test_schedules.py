"""Schedules descend to the data, have the published values, and say what is wrong with their bounds."""

import math

import pytest
import torch
from k_diffusion.sampling import get_sigmas_polyexponential

from stable_audio_tools.inference.sampling.schedules import (
    SCHEDULES,
    Span,
    find_schedule,
    logsnr,
    polyexponential,
    shifted,
)
from stable_audio_tools.models.diffusion.distribution_shift import DistributionShift
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW, Objective, V

CONTINUOUS = [name for name in SCHEDULES if name not in ("leading", "trailing")]  # those are of a table
SHIFT = DistributionShift(base_shift=0.5, max_shift=1.15, min_length=256, max_length=4096)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("objective", [V, RECTIFIED_FLOW], ids=str)
@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_times_descend_from_the_start_to_the_data(name: str, objective: Objective, start: float, steps: int) -> None:
    times = find_schedule(name)(Span(objective, steps, start, shift=SHIFT, frames=1024))
    expected = start if name != "shifted" else float(SHIFT.time_shift(torch.tensor(start, dtype=torch.float64), 1024))
    assert len(times) == steps + 1
    assert times[0].item() == pytest.approx(expected, abs=1e-6)  # polyexponential is made in float32
    assert times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_one_step_goes_straight_to_the_data(name: str) -> None:
    assert find_schedule(name)(Span(RECTIFIED_FLOW, 1, shift=SHIFT)).tolist() == [1.0, 0.0]


def test_logsnr_has_the_published_values() -> None:
    published = [1, 0.993, 0.982, 0.953, 0.881, 0.731, 0.5, 0.269, 0]  # three digits are known
    torch.testing.assert_close(
        logsnr(Span(RECTIFIED_FLOW, 8)), torch.tensor(published, dtype=torch.float64), atol=6e-4, rtol=0
    )


def test_logsnr_steps_are_equal_in_log_of_data_over_noise_for_either_objective() -> None:
    for objective in (V, RECTIFIED_FLOW):
        times = logsnr(Span(objective, 16))[1:-1]
        alpha, sigma = objective.mix(times)
        steps = (alpha / sigma).log().diff()
        torch.testing.assert_close(steps, torch.full_like(steps, 0.5))


def test_logsnr_warns_where_it_would_rise(caplog: pytest.LogCaptureFixture) -> None:
    logsnr(Span(RECTIFIED_FLOW, 8, 0.05))
    assert "starts at t = 0.05; 'linear' suits so little noise better" in caplog.text


@pytest.mark.parametrize(("low", "high", "rho"), [(0.01, 100.0, 1.0), (0.3, 80.0, 1.0), (0.5, 50.0, 2.0)])
def test_polyexponential_noise_is_that_of_k_diffusion_to_the_last_digit(low: float, high: float, rho: float) -> None:
    start = float(V.time(torch.tensor(high, dtype=torch.float64)))
    times = polyexponential(Span(V, 20, start, low, rho))
    assert torch.equal(V.ratio(times).float(), get_sigmas_polyexponential(20, low, high, rho))


def test_shifted_moves_equal_steps_to_noise() -> None:
    times = shifted(Span(RECTIFIED_FLOW, 2, shift=SHIFT, frames=1024))
    assert times[1] == pytest.approx(0.6525, abs=5e-5)  # a recorded figure of DistributionShift(0.5, 1.15)


@pytest.mark.parametrize("objective", [V, RECTIFIED_FLOW], ids=str)
def test_ratio_and_time_are_inverse(objective: Objective) -> None:
    times = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(objective.time(objective.ratio(times)), times)
    assert objective.time(torch.tensor([0.0, math.inf])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Span(V, 0), "steps must be at least 1, got 0"),
        (lambda: Span(V, 3, 0.0), "above 0 and at most 1"),
        (lambda: Span(V, 3, sigma_min=0.0), "sigma_min must be above 0"),
        (lambda: shifted(Span(V, 3)), "'shifted' needs a model with distribution_shift_options"),
        (lambda: polyexponential(Span(V, 3, 0.5, sigma_min=2.0)), "sigma_min is 2, but the schedule starts at 1"),
        (lambda: find_schedule("logsnt"), "no schedule named 'logsnt'; did you mean 'logsnr'"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
