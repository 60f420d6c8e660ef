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
    points = pca_point_cloud(latents, output_type="points")
    assert points.shape == (40, 6)
    spread = points[:, :3].std(0)
    assert spread[0] > spread[1] > spread[2] > 0.5


def test_points_have_the_published_colours() -> None:
    """Recorded with matplotlib's colour maps, as the original takes them."""
    latents = torch.randn(2, 2, 4)
    by_item = pca_point_cloud(latents, output_type="points")
    assert by_item[:, 2].tolist() == [0.0] * 8, "two channels leave the third place empty"
    assert by_item[[0, 4], 3:].tolist() == [[140, 86, 75], [158, 218, 229]]
    groups = pca_point_cloud(latents, color_scheme=2, output_type="points")
    assert groups[[0, 4], 3:].tolist() == [[31, 119, 180], [140, 86, 75]]
    by_time = pca_point_cloud(latents, color_scheme="time", output_type="points")
    assert np.abs(by_time[:4, 3:] - [[68, 1, 84], [58, 82, 139], [32, 144, 140], [94, 201, 97]]).max() <= 2
