"""Metrics against the losses of training, which compute the same by other code, and against closed forms."""

import csv
import io
import math

import pytest
import torch

from stable_audio_tools.evaluation.reconstruction.metrics import compare, mel_distance, mrstft, si_sdr
from stable_audio_tools.evaluation.reconstruction.table import as_csv, as_svg, means, medians, silent_files
from stable_audio_tools.training.losses.auraloss import MultiResolutionSTFTLoss, SISDRLoss
from stable_audio_tools.training.losses.mel import MelSpectrogramLoss

RATE = 22050


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = 0.2 * torch.randn(2, 20000, generator=generator).cumsum(-1).sin()
    return original + 0.02 * torch.randn(2, 20000, generator=generator), original


def test_si_sdr_is_that_of_training_and_blind_to_scale(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    made, original = pair
    assert si_sdr(made, original) == pytest.approx(-float(SISDRLoss()(made[None], original[None])), abs=1e-3)
    assert si_sdr(3 * made + 0.1, original) == pytest.approx(si_sdr(made, original), abs=1e-4)


def test_si_sdr_of_known_noise() -> None:
    """A tone and another at a right angle to it, a tenth as loud: 20 dB."""
    time = torch.arange(8000) / 8000 * 2 * math.pi
    tone, other = torch.sin(100 * time)[None], torch.sin(101 * time)[None]
    assert si_sdr(tone + 0.1 * other, tone) == pytest.approx(20, abs=1e-3)


def test_silence_has_no_ratio_but_distances() -> None:
    found = compare(torch.zeros(1, 5000), torch.zeros(1, 5000), RATE)
    assert found.si_sdr is None and found.mrstft == 0 and found.mel == 0


def test_spectral_distances_are_those_of_training(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    made, original = pair
    loss = MultiResolutionSTFTLoss(fft_sizes=[1024, 2048, 512], hop_sizes=[120, 240, 50], win_lengths=[600, 1200, 240])
    assert float(mrstft(made, original)) == pytest.approx(float(loss(made[None], original[None])), rel=1e-4)
    mel = MelSpectrogramLoss(RATE, mag_weight=0.0)  # summed over two resolutions, log10 of powers
    # Magnitudes end at 1e-4 here, so that quiet bins differ a little.
    expected = 10 * float(mel(made[None], original[None])) / 2
    assert float(mel_distance(made, original, RATE)) == pytest.approx(expected, rel=1e-2)


def test_equal_sounds_have_no_distance_and_short_ones_are_measured(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, original = pair
    same = compare(original, original, RATE)
    assert same.mrstft == 0 and same.mel == 0 and same.si_sdr is not None and same.si_sdr > 100
    assert compare(original[:, :100], original[:, :100], RATE).mel == 0


def test_long_sounds_are_measured_in_blocks(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """At 200 Hz a block is 6000 samples: three whole ones and 2000 more, padded."""
    made, original = pair
    expected = [float(mrstft(made[:, s : s + 6000], original[:, s : s + 6000])) for s in (0, 6000, 12000)]
    found = compare(made[:, :18000], original[:, :18000], 200)
    assert found.mrstft == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_table_and_picture() -> None:
    records = [
        {"file": "a&b.wav", "source": "a&b.mp3", "seconds_made": 1.0, "si_sdr": 10.0, "mrstft": 1.0, "mel": 3.0},
        {"file": "c.wav", "source": "c.mp3", "seconds_made": 2.0, "si_sdr": None, "mrstft": 3.0, "mel": 5.0},
    ]
    assert means(records) == {"si_sdr": 10.0, "mrstft": 2.0, "mel": 4.0}
    silent = {"file": "s.wav", "source": "s.mp3", "seconds_made": 1.0, "si_sdr": -10.0, "mrstft": 88.0, "silent": True}
    assert means([*records, silent]) == means(records) and silent_files([*records, silent]) == ["s.mp3"]
    assert medians([*records, {**records[0], "mel": 100.0}])["mel"] == 5.0
    rows = list(csv.DictReader(io.StringIO(as_csv(records))))
    assert [row["file"] for row in rows] == ["a&b.wav", "c.wav", "median", "mean"]
    assert rows[1]["si_sdr"] == "" and rows[3]["mel"] == "4.0" and rows[3]["seconds"] == "3.0"
    import xml.etree.ElementTree as ElementTree

    picture = as_svg(records)
    ElementTree.fromstring(picture)
    assert picture.count("<circle") == 5 and "a&amp;b.wav: 10" in picture
    ElementTree.fromstring(as_svg([]))
