"""The constant-Q transform against its definition at the full rate."""

import math

import pytest
import torch

from stable_audio_tools.models.discriminators.bigvgan import ConstantQTransform

RATE, FMIN, OCTAVES, BINS, HOP = 16000, 200.0, 4, 12, 64


def by_definition(audio: torch.Tensor, frequency: float, frames: int) -> torch.Tensor:
    """Windowed correlation with one complex exponential, frame by frame, in float64."""
    quality = 1 / (2 ** (1 / BINS) - 1)
    length = math.ceil(quality * RATE / frequency)
    half = length // 2 + 1
    time = torch.arange(-half, half + 1, dtype=torch.float64)
    window = torch.where(time.abs() < length / 2, torch.cos(math.pi * time / length) ** 2, 0.0)
    kernel = window / window.sum() * torch.exp(-2j * math.pi * frequency / RATE * time)
    padded = torch.nn.functional.pad(audio.double(), (half, half)).to(torch.complex128)
    values = [(padded[index * HOP : index * HOP + len(time)] * kernel).sum() for index in range(frames)]
    return torch.stack(values) * math.sqrt(length)


def test_octave_by_octave_equals_the_definition():
    torch.manual_seed(0)
    time = torch.arange(8000) / RATE
    audio = sum(torch.sin(2 * math.pi * hertz * time) for hertz in (210.0, 500.0, 1200.0, 2700.0))
    audio = audio + 0.1 * torch.randn(8000)
    got = ConstantQTransform(RATE, HOP, FMIN, OCTAVES, BINS)(audio[None])[0]
    assert got.shape == (OCTAVES * BINS, math.ceil(8000 / HOP))
    size = got.abs().square().mean().sqrt()
    for row in range(0, OCTAVES * BINS, 5):
        want = by_definition(audio, FMIN * 2 ** (row / BINS), got.shape[1])
        # Below the top octave a window ends on a sample of the lower rate: about a percent at the lowest frequencies.
        # Within half a window of either end the low-pass filters see the audio stop.
        tolerance = 1e-4 if row >= (OCTAVES - 1) * BINS else 0.03
        assert (got[row] - want)[12:-12].abs().max() < tolerance * size, row


@pytest.mark.parametrize("row", [0, 17, 40])
def test_a_sinusoid_shows_in_its_own_bin(row):
    frequency = FMIN * 2 ** (row / BINS)
    audio = torch.sin(2 * math.pi * frequency * torch.arange(8000) / RATE)
    magnitude = ConstantQTransform(RATE, HOP, FMIN, OCTAVES, BINS)(audio[None])[0].abs()
    middle = magnitude[:, magnitude.shape[1] // 2]
    assert int(middle.argmax()) == row
    quality = 1 / (2 ** (1 / BINS) - 1)
    assert float(middle[row]) == pytest.approx(0.5 * math.sqrt(quality * RATE / frequency), rel=0.03)


def test_octaves_above_half_the_rate_are_refused():
    with pytest.raises(ValueError, match="at most 5 octaves fit"):
        ConstantQTransform(RATE, HOP, FMIN, 6, BINS)
