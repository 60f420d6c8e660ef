import logging

import librosa
import numpy as np
import pytest

from stable_audio_tools.mel.filterbank import Health, MelBands, check_filterbank, mel_filterbank
from stable_audio_tools.mel.transforms import LogAmplitudeMel
from stable_audio_tools.mel.vocoders import GriffinLimVocoder


@pytest.mark.parametrize(
    ("rate", "n_fft", "mels", "low", "high"),
    [
        (22050, 2048, 256, 0, None),
        (44100, 1024, 128, 0, None),
        (24000, 1024, 100, 0, 12000),
        (22050, 1024, 80, 40, 8000),
    ],
)
def test_equals_librosas_to_the_bit(rate: int, n_fft: int, mels: int, low: float, high: float | None) -> None:
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=low, fmax=high)
    assert np.array_equal(mel_filterbank(MelBands(rate, n_fft, mels, low, high)), theirs)


@pytest.mark.parametrize(
    ("bands", "health"),
    [
        (MelBands(22050, 2048, 256), Health(256, 0)),
        (MelBands(22050, 1024, 256), Health(218, 0)),
        (MelBands(44100, 1024, 128), Health(118, 0)),
        (MelBands(22050, 1024, 512), Health(333, 76)),
    ],
)
def test_knows_how_many_bands_can_be_told_apart(bands: MelBands, health: Health) -> None:
    assert check_filterbank(bands) == health
    assert (health.problem(bands) is None) == (health.rank == bands.n_mels)


def test_a_deficient_rank_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        GriffinLimVocoder().problem(LogAmplitudeMel(MelBands(22050, 1024, 512), 1024, 256, 1024))
    assert "512 mel bands (76 hold no bin at all) of n_fft 1024 at 22050 Hz have rank 333" in caplog.text
    assert "take n_fft 2048, or fewer bands" in caplog.text
