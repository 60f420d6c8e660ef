"""Correlation at every offset, against a loop."""

import numpy as np
import pytest
import torch

from stable_audio_tools.dedup.spectrum import SAMPLE_RATE, Frames, _correlate, align, analyse


def random_frames(length: int, seed: int) -> Frames:
    rng = np.random.default_rng(seed)
    return Frames(
        rng.integers(0, 255, (32, length), np.uint8),
        rng.integers(0, 255, (12, length), np.uint8),
        np.ones(length, bool),
    )


def cut(frames: Frames, start: int, stop: int) -> Frames:
    return Frames(frames.mel[:, start:stop], frames.chroma[:, start:stop], frames.loud[start:stop])


def test_equal_to_a_loop_over_offsets() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((3, 11)), rng.standard_normal((3, 8))
    found = _correlate(torch.from_numpy(one), torch.from_numpy(other))
    for offset in range(-7, 11):
        here = slice(max(0, offset), min(11, 8 + offset))
        there = slice(max(0, -offset), min(8, 11 - offset))
        a, b = one[:, here], other[:, there]
        expected = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) if a.shape[1] >= 4 else -1.0
        assert float(found[offset]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("start", "stop"), [(0, 90), (13, 90), (0, 55), (20, 80)])
def test_a_cut_is_found_at_its_place(start: int, stop: int) -> None:
    whole = random_frames(90, 1)
    aligned = align(whole, cut(whole, start, stop))
    assert aligned.score > 0.95
    assert aligned.offset_seconds == start / 10
    assert align(cut(whole, start, stop), whole).offset_seconds == -start / 10


def test_strangers_do_not_agree() -> None:
    assert align(random_frames(90, 1), random_frames(80, 2)).score < 0.2


def test_level_and_polarity_leave_no_trace_in_frames() -> None:
    audio = torch.from_numpy(np.random.default_rng(0).standard_normal(SAMPLE_RATE)).float()
    loud, quiet = analyse(0.5 * audio), analyse(-0.05 * audio)
    for one, other in zip(loud, quiet):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1  # a rounding of bytes


def test_one_pitch_is_its_pitch_class() -> None:
    time = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    for pitch, name in ((440.0, 9), (261.63, 0), (130.81, 0)):  # A, C, C
        chroma = analyse(torch.sin(2 * torch.pi * pitch * time)).chroma
        assert set(chroma[:, 2:15].argmax(0)) == {name}


@pytest.mark.parametrize("samples", [1, 500, 1_600, 16_000])
def test_short_audio_has_frames_too(samples: int) -> None:
    frames = analyse(torch.ones(samples))
    assert frames.mel.shape[1] == frames.chroma.shape[1] == len(frames.loud) >= 1
