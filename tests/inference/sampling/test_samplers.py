"""Samplers against closed forms: where the data is Gaussian, the best denoiser and the flow of the ODE are known."""

import math
import threading

import pytest
import torch

from stable_audio_tools.inference.sampling.randomness import SeededNoise
from stable_audio_tools.inference.sampling.samplers import SAMPLERS, ddim, ddim_cfgpp, find_sampler, samplers_for
from stable_audio_tools.inference.sampling.schedules import Span, find_schedule
from stable_audio_tools.inference.sampling.watching import Cancelled, Watch, WatchedDenoiser
from stable_audio_tools.models.diffusion.guidance import Guided
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW, Objective, V

CPU = torch.device("cpu")
MEAN, DEVIATION = 0.4, 0.7
ODE = {  # sampler: steps, largest error; exact for infinitely many steps
    "k-heun": (40, 2e-2),
    "k-dpm-2": (40, 2e-2),
    "k-lms": (40, 2e-2),
    "dpmpp-2m": (40, 1e-2),
    "k-dpm-fast": (60, 2e-2),
    "k-dpm-adaptive": (10, 4e-2),
    "v-ddim": (400, 1e-2),
    "v-ddim-cfgpp": (400, 1e-2),
    "euler": (400, 1e-2),
    "rk4": (20, 1e-4),
    "dpmpp": (60, 1e-2),
}
CONTINUOUS = [name for name, sampler in SAMPLERS.items() if not sampler.on_table]  # test_ddpm_samplers.py has the rest
NOT_SINGULAR = [name for name in CONTINUOUS if name != "rk4"]  # it asks for the slope at t = 0, here 0 / 0
RANDOM = ("dpmpp-2m-sde", "dpmpp-3m-sde", "k-dpmpp-2s-ancestral")


class Best:
    """The prediction for data of which only mean and deviation are known; deviation 0: the data themselves."""

    def __init__(self, objective: Objective, mean: torch.Tensor | float = MEAN, deviation: float = DEVIATION) -> None:
        self.objective, self.mean, self.deviation = objective, mean, deviation

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (part[:, None, None] for part in self.objective.mix(t.double()))
        variance = alpha**2 * self.deviation**2 + sigma**2
        gain = alpha * self.deviation**2 / variance
        error = x - alpha * self.mean
        data, noise = self.mean + gain * error, sigma / variance * error
        return (alpha * noise - sigma * data if self.objective == V else noise - data).to(x.dtype)

    def guided(self, x: torch.Tensor, t: torch.Tensor) -> Guided:
        return Guided(self(x, t), self(x, t))


def objective_of(name: str) -> Objective:
    return SAMPLERS[name].objectives[0]()


def times_for(name: str, steps: int, schedule: str | None = None) -> torch.Tensor:
    info, objective = SAMPLERS[name], objective_of(name)
    return find_schedule(schedule or info.schedule)(Span(objective, steps, info.first_time(None)))


def run(name: str, steps: int, x: torch.Tensor, best: Best, schedule: str | None = None, seeds=(3,), watch=None):
    noise = SeededNoise(seeds, CPU)
    return SAMPLERS[name].run(best, x, times_for(name, steps, schedule), noise, watch or Watch())


@pytest.mark.parametrize("name", ODE)
def test_deterministic_samplers_follow_the_ode(name: str) -> None:
    """x_t - alpha mean, in units of its deviation, does not change along the ODE."""
    steps, tolerance = ODE[name]
    objective = objective_of(name)
    # The published schedule of flows ends with a long step, whose error does not vanish.
    schedule = None if objective == V else "linear"
    start = times_for(name, steps, schedule)[0]
    alpha, sigma = objective.mix(start)
    deviation = (alpha**2 * DEVIATION**2 + sigma**2).sqrt()
    units = torch.linspace(-2, 2, 24).reshape(1, 2, 12)
    made = run(name, steps, (alpha * MEAN + deviation * units).float(), Best(objective), schedule)
    torch.testing.assert_close(made, MEAN + DEVIATION * units, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("v-ddim", 1), ("rk4", 4), ("dpmpp", 2), ("k-heun", 2), ("dpmpp-2m", 2)]
)
def test_order_of_convergence(name: str, order: int) -> None:
    """Twice the steps divide the error by 2^order; half of that is asked for, since steps are few."""
    best = Best(objective_of(name))
    units = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(1, 2, 12)

    def error(steps: int) -> float:
        times = torch.linspace(0.9, 0, steps + 1, dtype=torch.float64)
        alpha, sigma = best.objective.mix(times[0])
        x = alpha * MEAN + (alpha**2 * DEVIATION**2 + sigma**2).sqrt() * units
        made = SAMPLERS[name].run(best, x, times, SeededNoise((0,), CPU), Watch())
        return float((made - MEAN - DEVIATION * units).abs().max())

    assert error(128) < 2 * error(64) / 2**order


@pytest.mark.parametrize("name", RANDOM)
def test_random_samplers_draw_from_the_data(name: str) -> None:
    x = torch.randn(1, 4, 5000, generator=torch.Generator().manual_seed(0))
    info = SAMPLERS[name]
    x = info.first_state(times_for(name, 60), x, None, V)
    made = run(name, 60, x, Best(V))
    # 20000 draws: the mean is known to 0.7 / sqrt(20000) = 0.005, the deviation to 0.0035; three times that, and bias.
    assert made.mean() == pytest.approx(MEAN, abs=0.02)
    assert made.std() == pytest.approx(DEVIATION, abs=0.02)


def test_ancestral_ddim_draws_from_the_data() -> None:
    x = torch.randn(1, 4, 5000, generator=torch.Generator().manual_seed(0))
    made = ddim(Best(V), x, times_for("v-ddim", 200), SeededNoise((1,), CPU), Watch(), eta=1.0)
    assert made.mean() == pytest.approx(MEAN, abs=0.02)
    assert made.std() == pytest.approx(DEVIATION, abs=0.02)


@pytest.mark.parametrize("name", NOT_SINGULAR)
@pytest.mark.parametrize("steps", [2, 7])
def test_every_sampler_finds_data_that_the_denoiser_knows(name: str, steps: int) -> None:
    data = torch.linspace(-1, 1, 24).reshape(1, 2, 12)
    x = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0))
    made = run(name, steps, x, Best(objective_of(name), data, 0.0))
    # DPM-Solver fast and adaptive stop at the last noise above none, 0.01 of the noise they began with.
    torch.testing.assert_close(made, data, atol=5e-2 if SAMPLERS[name].own_steps else 1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in NOT_SINGULAR if not SAMPLERS[name].own_steps])
@pytest.mark.parametrize("schedule", ["linear", "logsnr", "polyexponential"])
def test_every_sampler_takes_every_schedule(name: str, schedule: str) -> None:
    data = torch.linspace(-1, 1, 24).reshape(1, 2, 12)
    x = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0))
    info, objective = SAMPLERS[name], objective_of(name)
    times = find_schedule(schedule)(Span(objective, 5, info.first_time(0.9)))
    made = info.run(Best(objective, data, 0.0), x, times, SeededNoise((3,), CPU), Watch())
    torch.testing.assert_close(made, data, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in NOT_SINGULAR if not SAMPLERS[name].own_steps])
def test_one_step_is_the_prediction(name: str) -> None:
    objective = objective_of(name)
    x = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0))
    times = times_for(name, 1)
    made = run(name, 1, x, Best(objective))
    t = times[:1].float()
    expected = objective.predict_data(x, Best(objective)(x, t), t)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_pingpong_adds_fresh_noise_to_the_prediction() -> None:
    data = torch.full((2, 2, 6), 0.5)
    seen = []
    watch = Watch(lambda info: seen.append(info["x"]))
    x = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0))
    run("pingpong", 4, x, Best(RECTIFIED_FLOW, data, 0.0), watch=watch, seeds=(7,))
    generator = torch.Generator().manual_seed(7)
    times = times_for("pingpong", 4).tolist()
    for state, t in zip(seen[1:], times[1:]):
        torch.testing.assert_close(state, (1 - t) * data + t * torch.randn(2, 2, 6, generator=generator))


def test_cfgpp_takes_the_noise_of_the_unconditional_prediction() -> None:
    class Denoiser:
        def guided(self, x: torch.Tensor, t: torch.Tensor) -> Guided:
            return Guided(torch.full_like(x, 0.3), torch.full_like(x, -0.2))

    x = torch.linspace(-1, 1, 8).reshape(1, 2, 4)
    times = torch.tensor([0.8, 0.5, 0.0], dtype=torch.float64)
    seen = []
    ddim_cfgpp(Denoiser(), x, times, SeededNoise((0,), CPU), Watch(lambda info: seen.append(info["x"])))
    t = torch.tensor([0.8])
    data = V.predict_data(x, torch.full_like(x, 0.3), t)
    noise = V.predict_noise(x, torch.full_like(x, -0.2), t)
    alpha, sigma = math.cos(0.25 * math.pi), math.sin(0.25 * math.pi)
    torch.testing.assert_close(seen[0], alpha * data + sigma * noise)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_callback_keys_and_progress(name: str) -> None:
    told, progress = [], []
    watch = Watch(told.append, None, lambda *counts: progress.append(counts), 6)
    x = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(0))
    run(name, 6, x, Best(objective_of(name)), watch=watch)
    assert all({"x", "i", "t", "sigma", "sigma_hat", "denoised", "step"} <= set(info) for info in told)
    assert [info["step"] for info in told] == list(range(1, len(told) + 1))
    assert [done for done, _ in progress] == [info["step"] for info in told]
    assert all(info["denoised"].shape == x.shape and 0 <= float(info["t"]) <= 1 for info in told)
    if not SAMPLERS[name].own_steps:
        assert len(told) == 6
        first = 1 if name in ("euler", "rk4") else 0  # as published
        assert [info["i"] for info in told] == list(range(first, first + 6))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_random_state_of_the_process_is_untouched(name: str) -> None:
    before = torch.get_rng_state()
    run(name, 4, torch.zeros(1, 2, 12), Best(objective_of(name)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_cancelling_stops_before_the_next_pass(name: str) -> None:
    event = threading.Event()
    passes = 0
    watch = Watch(lambda info: event.set() if info["step"] == 2 else None, event)

    class Counting(Best):
        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal passes
            passes += 1
            assert not event.is_set()
            return super().__call__(x, t)

    denoiser = WatchedDenoiser(Counting(objective_of(name)), watch)
    with pytest.raises(Cancelled):
        SAMPLERS[name].run(denoiser, torch.zeros(1, 2, 12), times_for(name, 12), SeededNoise((0,), CPU), watch)
    assert passes > 0


def test_unknown_and_unfit_samplers_are_named() -> None:
    with pytest.raises(ValueError, match="no sampler named 'dpmpp-2m-sd'; did you mean 'dpmpp-2m-sde'"):
        find_sampler("dpmpp-2m-sd", "v")
    with pytest.raises(ValueError, match="'euler' is not for a model with the objective 'v'; use dpmpp-2m-sde"):
        find_sampler("euler", "v")
    with pytest.raises(ValueError, match="k-dpm-fast' needs at least 2 steps, got 1"):
        run("k-dpm-fast", 1, torch.zeros(1, 2, 12), Best(V))
    with pytest.raises(ValueError, match="init_noise_level must be above 0, got 0"):
        SAMPLERS["euler"].first_time(0, "init_noise_level")
    assert samplers_for("rf_denoiser") == ["euler", "rk4", "dpmpp", "pingpong"]
