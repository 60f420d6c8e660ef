"""Samplers of ddpm models: diffusers' schedulers step by step, exact for a known distribution, invertible."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.inference.sampling.ddpm_samplers import ddim, ddpm, invert_ddim
from stable_audio_tools.inference.sampling.samplers import SAMPLERS, samplers_for
from stable_audio_tools.inference.sampling.schedules import SCHEDULES, Span
from stable_audio_tools.inference.sampling.watching import Watch
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective
from stable_audio_tools.models.diffusion.guidance import Guided
from stable_audio_tools.models.diffusion.objectives import V

SHAPE = (3, 4, 10)  # a batch, and channels
THEIR_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}


class Network:
    """A smooth function of state and time in place of a network."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) * 0.5 + x * t[:, None, None]

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        return Guided(self(x, t), self(x, t))


class Recorded:
    """Noise that both sides draw in the same order."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator)


def states(run: Any, x: Tensor, times: Tensor, network: Any = None, **options: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    watch = Watch(callback=lambda told: seen.append(told["x"]))
    run(network or Network(), x, times, Recorded(), watch, **options)
    return seen


@pytest.mark.parametrize("kind", THEIR_NAMES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("name", "eta"), [("ddpm", None), ("ddim", 0.0), ("ddim", 0.7), ("ddim", 1.0)])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_each_step_is_that_of_diffusers(name: str, eta: float | None, kind: str, spacing: str, clip: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs_of = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[name]
    theirs = theirs_of(
        prediction_type=THEIR_NAMES[kind], timestep_spacing=spacing, clip_sample=clip is not None, clip_sample_range=1.0
    )
    theirs.set_timesteps(20)
    objective = DDPMObjective(prediction_type=kind, clip_sample=clip)
    times = SCHEDULES[spacing](Span(objective, 20))
    assert torch.equal((times[:-1] * 1000 - 1).round().long(), theirs.timesteps)

    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    options = {"objective": objective} | ({} if eta is None else {"eta": eta})
    ours = states({"ddpm": ddpm, "ddim": ddim}[name], start, times, **options)
    x, noise = start, Recorded()
    for index, (k, t) in enumerate(zip(theirs.timesteps, times)):
        output = Network()(x, torch.full((len(x),), float(t)))
        if eta is None:  # their own draw, in the order of ours
            x = theirs.step(output, k, x, generator=noise.generator).prev_sample
        else:
            fresh = noise.like(x) if eta and index < 19 else None
            x = theirs.step(output, k, x, eta=eta, variance_noise=torch.zeros_like(x) if fresh is None else fresh)
            x = x.prev_sample
        # Their table is float32, and alpha is 0.006 at its end: states as large as 1e3 there, off by 1e-5 of that.
        torch.testing.assert_close(ours[index], x, rtol=2e-4, atol=2e-4)


class Gaussian:
    """The exact network for data from N(0.5, 0.3^2)."""

    def __init__(self, objective: DDPMObjective) -> None:
        self.objective = objective

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part[:, None, None] for part in self.objective.mix(t.double()))
        total = (alpha * 0.3) ** 2 + sigma**2
        noise = sigma * (x - alpha * 0.5) / total
        data = 0.5 + alpha * 0.09 * (x - alpha * 0.5) / total
        return {"epsilon": noise, "sample": data, "v": alpha * noise - sigma * data}[self.objective.prediction_type].to(
            x
        )

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        return Guided(self(x, t), self(x, t))


@pytest.mark.parametrize("name", [name for name in samplers_for(DDPMObjective()) if name != "k-dpm-adaptive"])
@pytest.mark.parametrize("kind", THEIR_NAMES)
def test_every_sampler_draws_from_the_distribution(name: str, kind: str) -> None:
    """The k-samplers through the adapter among them. 20,000 draws tell a mean to 0.002 and a deviation to 0.0015."""
    objective, sampler = DDPMObjective(prediction_type=kind), SAMPLERS[name]
    steps = 300 if name == "ddpm" else 60
    span = Span(sampler.view(objective), steps, sampler.first_time(None, "", objective))
    times = SCHEDULES[sampler.schedule](span)
    x = torch.randn(1, 1, 20000, generator=torch.Generator().manual_seed(1))
    noise = Recorded()
    noise.tree_seeds = lambda: 5  # type: ignore[attr-defined]
    run, denoiser = sampler.bound(Gaussian(objective), objective, None)
    made = run(denoiser, sampler.first_state(times, x, None, sampler.view(objective)), times, noise, Watch())
    assert made.mean().item() == pytest.approx(0.5, abs=0.015)
    assert made.std().item() == pytest.approx(0.3, abs=0.02)


def test_inversion_finds_the_noise() -> None:
    objective = DDPMObjective()
    times = SCHEDULES["leading"](Span(objective, 50))
    network = Gaussian(objective)
    start = torch.randn(2, 3, 8)
    data = ddim(network, start, times, Recorded(), Watch(), objective)

    def error(refinements: int) -> float:
        found = invert_ddim(network, data, times, Watch(), objective, refinements)
        return float((ddim(network, found, times, Recorded(), Watch(), objective) - data).abs().max())

    errors = [error(0), error(2), error(6)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-4


def test_ddim_at_eta_1_has_the_variance_of_ddpm() -> None:
    """One step from the same state, over many draws of the noise."""
    objective = DDPMObjective()
    times = torch.tensor([0.5, 0.4, 0.0], dtype=torch.float64)
    x = torch.full((1, 1, 20000), 0.7)
    network, options = Gaussian(objective), {"objective": objective}
    ancestral = states(ddpm, x, times, network, **options)[0]
    torch.testing.assert_close(states(ddim, x, times, network, eta=1.0, **options)[0], ancestral, rtol=1e-5, atol=1e-5)


def test_a_prediction_is_read_at_the_time_it_was_made_for() -> None:
    objective = DDPMObjective(prediction_type="sample")
    t = torch.tensor([0.3, 0.8])
    x = torch.randn(2, 1, 4)
    assert torch.equal(objective.predict_data(x, x * 2, t), x * 2)


def test_schedules_end_at_the_data_and_descend() -> None:
    for name in ("leading", "trailing"):
        for steps, start in ((7, 1.0), (50, 0.5), (1, 0.3), (1000, 1.0)):
            times = SCHEDULES[name](Span(DDPMObjective(), steps, start)).tolist()
            assert len(times) == steps + 1
            assert times[-1] == 0
            assert times[0] <= start
            assert all(before > after for before, after in pairwise(times))
    with pytest.raises(ValueError, match=r"steps is 60, and from t = 0.05 there are 50 of the 1000 noise levels"):
        SCHEDULES["leading"](Span(DDPMObjective(), 60, 0.05))
    with pytest.raises(ValueError, match=r"'leading' and 'trailing' are for the samplers ddpm and ddim"):
        SCHEDULES["leading"](Span(V, 10))


def test_eta_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"eta must be from 0 .* got 60"):
        SAMPLERS["ddim"].check_eta(60, "ddim")
    with pytest.raises(ValueError, match=r"eta: sampler_type 'euler' does not use it; .* use ddim, v-ddim"):
        SAMPLERS["euler"].check_eta(0.5, "euler")
