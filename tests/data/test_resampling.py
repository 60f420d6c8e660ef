"""Resampling: torchaudio's numbers, and a span equals the same span of the whole."""

import random

import pytest
import torch
import torchaudio.functional as F

from stable_audio_tools.data.resampling import input_span, resample, resample_span, resampled_length

RATES = [(44_100, 48_000), (48_000, 44_100), (22_050, 44_100), (96_000, 44_100), (8_000, 44_100)]


@pytest.mark.parametrize(("old", "new"), RATES)
def test_agrees_with_torchaudio(old: int, new: int) -> None:
    audio = torch.randn(2, 5_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.resample(audio, old, new)
    torch.testing.assert_close(resample(audio, old, new), expected, atol=1e-12, rtol=0)
    # torchaudio computes its float32 filter in float32 too, which costs it 4e-5; ours is rounded once.
    single = resample(audio.float(), old, new)
    torch.testing.assert_close(single.double(), expected, atol=2e-6, rtol=0)


def test_rates_without_common_factor_give_the_same_sum() -> None:
    """44,099 -> 44,100 Hz is computed by gathering; the bank of filters would hold two billion numbers."""
    audio = torch.randn(1, 3_000, generator=torch.Generator().manual_seed(1))
    odd = resample(audio, 44_099, 44_100)
    assert odd.shape == (1, 3_001)
    # Over 3,000 samples the two clocks drift by 0.07 samples, so the beginning is nearly untouched.
    low = F.lowpass_biquad(audio, 44_100, 5_000)
    torch.testing.assert_close(resample(low, 44_099, 44_100)[:, 100:400], low[:, 100:400], atol=0.02, rtol=0)


@pytest.mark.parametrize(("old", "new"), [*RATES, (44_099, 44_100), (48_001, 16_000)])
def test_a_span_equals_that_span_of_the_whole(old: int, new: int) -> None:
    audio = torch.randn(2, 6_000, generator=torch.Generator().manual_seed(2))
    whole, rng = resample(audio, old, new), random.Random(0)
    assert whole.shape[1] == resampled_length(6_000, old, new)
    for _ in range(20):
        first = rng.randrange(whole.shape[1])
        count = rng.randrange(1, whole.shape[1] - first + 1)
        start, stop = input_span(first, count, old, new)
        start, stop = max(0, start), min(stop, 6_000)
        span = resample_span(audio[:, start:stop], start, first, count, old, new)
        torch.testing.assert_close(span, whole[:, first : first + count], atol=1e-6, rtol=0)


def test_filters_are_usable_for_training_after_inference_mode() -> None:
    with torch.inference_mode():
        resample(torch.randn(1, 500), 16_000, 12_000)
    audio = torch.randn(1, 500, requires_grad=True)
    resample(audio, 16_000, 12_000).sum().backward()
    assert audio.grad is not None


def test_rates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        resample(torch.zeros(1, 10), 0, 44_100)
