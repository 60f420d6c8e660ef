"""Seams: level, phase and power where one piece of audio follows another."""

import math

import pytest
import torch

from stable_audio_tools.inference.generation.splicing import best_lag, loudness_gain, splice

RATE = 8000


def noise(seconds: float, seed: int = 0, channels: int = 1) -> torch.Tensor:
    return torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_the_gain_undoes_a_change_of_level(seconds: float) -> None:
    clip = noise(seconds)
    assert loudness_gain(clip, clip * 0.5, RATE) == pytest.approx(2.0, rel=1e-3)
    assert loudness_gain(clip, clip * 100, RATE) == pytest.approx(10 ** (-12 / 20))
    assert loudness_gain(clip * 0, clip, RATE) == loudness_gain(clip, clip * 0, RATE) == 1.0


def test_a_tone_goes_on_in_phase() -> None:
    time = torch.arange(RATE) / RATE
    before = torch.sin(2 * math.pi * 200 * time)[None]
    after = torch.sin(2 * math.pi * 200 * time + 1.3)[None]
    joined = splice(before, after, overlap=2000, fade=800, search=80)
    phase = joined[0, 6000:8400]
    fitted = torch.stack(
        [torch.sin(2 * math.pi * 200 * torch.arange(2400) / RATE + shift) for shift in (0.0, 0.1, -0.1)]
    )
    assert (fitted - phase).square().mean(1).min() < 0.01  # within the half sample that a shift can be off
    out_of_phase = splice(before, after, overlap=2000, fade=800, search=0)
    assert out_of_phase[0, 7200:8000].square().mean() == pytest.approx(phase.square().mean().item(), rel=0.2)


def test_the_fade_keeps_the_power_of_unrelated_sounds() -> None:
    joined = splice(noise(2), noise(2, seed=1), overlap=8000, fade=8000, search=0)
    assert joined.shape[-1] == 3 * RATE
    levels = joined[0].unfold(0, 2000, 2000).std(1)
    assert (levels / 0.1 - 1).abs().max() < 0.1


def test_equal_pieces_leave_no_trace() -> None:
    clip = noise(2)
    torch.testing.assert_close(splice(clip[:, :12000], clip[:, 8000:], overlap=4000, fade=1000, search=0), clip)
    assert best_lag(clip[:, 500:900], clip[:, 480:980], 30) == -10
    assert torch.equal(splice(clip, clip, overlap=16000, fade=0, search=10), clip)
