"""Samplers with a schedule per item: orders of convergence on a known flow, rows against one schedule."""

from typing import Any

import pytest
import torch

from stable_audio_tools.inference.sampling import build_schedule, sample_diffusion
from stable_audio_tools.models.diffusion.distribution_shift import LogSNRShift


class GaussianFlow(torch.nn.Module):
    """The exact velocity of a flow whose data are normal with this deviation: samples are a multiple of the noise."""

    def __init__(self, deviation: float = 0.5) -> None:
        super().__init__()
        self.deviation = deviation
        self.times: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, **options: Any) -> torch.Tensor:
        self.times.append(t)
        wide = t[:, None, None]
        variance = (1 - wide) ** 2 * self.deviation**2 + wide**2
        data = (1 - wide) * self.deviation**2 * x / variance
        return (x - data) / wide.clamp(min=1e-6)


def error(sampler: str, steps: int, **options: Any) -> float:
    noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    made = sample_diffusion(GaussianFlow(), noise, {}, "rectified_flow", steps, sampler_type=sampler, **options)
    return float((made - 0.5 * noise).norm() / noise.norm())


@pytest.mark.parametrize(("sampler", "steps", "factor"), [("euler", 8, 1.7), ("dpmpp", 8, 2.5), ("rk4", 2, 6.0)])
def test_more_steps_come_nearer_to_the_exact_solution(sampler: str, steps: int, factor: float) -> None:
    shift = {"dist_shift": LogSNRShift(rate=0.0), "disable_tqdm": True}
    assert error(sampler, 2 * steps, **shift) * factor < error(sampler, steps, **shift)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp", "rk4"])
def test_rows_are_what_each_schedule_gives_alone(sampler: str) -> None:
    noise = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"dist_shift": LogSNRShift(anchor_length=10), "sampler_type": sampler, "disable_tqdm": True}
    rows = {"sample_rate": 1, "use_effective_length_for_schedule": True}
    network = GaussianFlow()
    items = [{"seconds_total": 4}, {"seconds_total": 40}]
    made = sample_diffusion(network, noise, {}, "rectified_flow", 6, conditioning=items, **rows, **call)
    assert any(len(t.unique()) == 2 for t in network.times)
    for index, item in enumerate(items):
        one = noise[index : index + 1]
        alone = sample_diffusion(GaussianFlow(), one, {}, "rectified_flow", 6, conditioning=[item], **rows, **call)
        torch.testing.assert_close(made[index : index + 1], alone)


def test_a_batch_of_as_many_items_as_times_keeps_its_rows() -> None:
    rows = build_schedule(
        3, dist_shift=LogSNRShift(anchor_length=10), effective_seq_len=torch.tensor([1.0, 5, 50, 500])
    )
    assert rows.shape == (4, 4)
    assert (rows[:, 1].diff() > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_schedule(0), "steps must be at least 1"),
        (lambda: build_schedule(3, dist_shift=LogSNRShift()), "needs the length of the sequence"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
