"""Clip transforms."""

import random

import pytest
import torch

from stable_audio_tools.data import modification, utils
from stable_audio_tools.data.transforms import (
    Mono,
    PadCrop,
    PadCrop_Normalized_T,
    PhaseFlipper,
    Stereo,
    VolumeNorm,
    is_silence,
    set_channels,
)


def test_short_audio_is_padded_at_its_end() -> None:
    crop = PadCrop_Normalized_T(10, 4, randomize=True)(torch.ones(2, 6))
    audio, t_start, t_end, seconds_start, seconds_total, mask = crop
    assert audio.tolist() == [[1.0] * 6 + [0.0] * 4] * 2
    assert (t_start, t_end, seconds_start, seconds_total) == (0, 1, 0, 2)
    assert mask.tolist() == [1.0] * 6 + [0.0] * 4


def test_a_random_crop_tells_where_it_lies() -> None:
    random.seed(0)
    source = torch.arange(1_000.0)[None]
    starts = set()
    for _ in range(50):
        crop = PadCrop_Normalized_T(100, 100)(source)
        start = int(crop.audio[0, 0])
        torch.testing.assert_close(crop.audio[0], torch.arange(start, start + 100.0))
        assert crop.t_start == start / 1_000 and crop.t_end == (start + 100) / 1_000
        assert crop.seconds_start == start // 100 and crop.seconds_total == 10
        starts.add(start)
    assert len(starts) > 30


def test_pad_crop_reaches_both_ends() -> None:
    torch.manual_seed(0)
    starts = {int(PadCrop(3)(torch.arange(5.0)[None])[0, 0]) for _ in range(60)}
    assert starts == {0, 1, 2}


def test_channels_follow_one_rule() -> None:
    six = torch.arange(6.0)[:, None].expand(6, 4)
    assert set_channels(six, 1)[:, 0].tolist() == [2.5]
    assert set_channels(six, 2)[:, 0].tolist() == [0, 1]
    assert set_channels(six[:2], 5)[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert set_channels(torch.ones(4), 2).shape == (2, 4)
    assert Stereo()(six).shape == (2, 4) and Mono()(six).shape == (1, 4) and Mono()(six[0]).shape == (4,)


def test_phase_flips_half_of_the_time() -> None:
    random.seed(0)
    flipped = sum(float(PhaseFlipper()(torch.ones(1))) < 0 for _ in range(1_000))
    assert 440 < flipped < 560  # four standard deviations


def test_volume_norm_reaches_the_wanted_loudness() -> None:
    torch.manual_seed(0)
    norm = VolumeNorm((-20, 1), 16_000)
    for gain in (0.01, 0.3):
        louder = norm(gain * torch.randn(2, 32_000))
        assert -21.1 < float(norm.loudness(louder)) < -18.9
    quiet = 1e-5 * torch.randn(2, 32_000)
    assert norm(quiet) is quiet
    short = torch.randn(2, 1_000)
    assert norm(short) is short


def test_volume_norm_never_clips() -> None:
    peaky = torch.zeros(1, 32_000)
    peaky[0, ::2_000] = 0.9
    assert VolumeNorm((0, 0), 16_000)(peaky).abs().max() == pytest.approx(0.95)


@pytest.mark.parametrize(("peak", "silent"), [(0.0, True), (0.0009, True), (0.0011, False)])
def test_silence_ends_at_minus_60_db(peak: float, silent: bool) -> None:
    assert is_silence(torch.tensor([[0.0, -peak]])) is silent


def test_published_paths_lead_here() -> None:
    assert utils.PadCrop_Normalized_T is modification.PadCrop_Normalized_T is PadCrop_Normalized_T
