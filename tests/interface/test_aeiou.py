"""Published pictures: made for any input, and showing what they should."""

import numpy as np
import pytest
import torch

from stable_audio_tools.interface.aeiou import audio_spectrogram_image, pca_point_cloud, tokens_spectrogram_image


def tone(pitch: float, rate: int = 16000) -> torch.Tensor:
    return torch.sin(2 * torch.pi * pitch * torch.arange(rate) / rate)[None]


def brightest_row(picture: object) -> int:
    return int(np.asarray(picture).sum((1, 2)).argmax())


def test_high_tones_stand_above_low_ones() -> None:
    low, high = (audio_spectrogram_image(tone(pitch), sample_rate=16000) for pitch in (300.0, 4000.0))
    assert brightest_row(high) < brightest_row(low)


def test_sixteen_bit_audio_gives_the_same_picture() -> None:
    audio = tone(1000.0)
    whole = audio_spectrogram_image(audio, sample_rate=16000)
    rounded = audio_spectrogram_image((audio * 32767).to(torch.int16), sample_rate=16000)
    # 16 bits put a floor under the spectrum, which shows as a slight difference in dark places
    assert np.abs(np.asarray(whole).astype(int) - np.asarray(rounded).astype(int)).mean() < 8


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_any_length_gives_a_picture(length: int) -> None:
    assert audio_spectrogram_image(torch.zeros(2, length), sample_rate=16000).size == (512, 128)


def test_latents() -> None:
    assert tokens_spectrogram_image(torch.randn(2, 8, 10)).size[0] == 512


def test_points_keep_the_largest_spread() -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 6, 20) * torch.tensor([10.0, 5.0, 2.0, 0.01, 0.01, 0.01])[None, :, None]
    points = pca_point_cloud(latents)
    assert points.shape == (40, 4)
    spread = points[:, :3].std(0)
    assert spread[0] > spread[1] > spread[2] > 0.5
    assert set(points[:, 3]) == {1, 2}
