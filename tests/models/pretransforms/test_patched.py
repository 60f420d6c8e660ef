"""Patches: which sample becomes which channel."""

import pytest
import torch

from stable_audio_tools.models.pretransforms import PatchedPretransform


def test_samples_of_a_patch_become_channels() -> None:
    x = torch.arange(24.0).reshape(1, 2, 12)
    z = PatchedPretransform(channels=2, patch_size=4).encode(x)
    assert z.shape == (1, 8, 3)
    assert z[0, :, 1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


def test_decoding_gives_the_audio_back_and_the_end_is_silent() -> None:
    transform = PatchedPretransform(channels=2, patch_size=4)
    x = torch.randn(2, 2, 10)
    decoded = transform.decode(transform.encode(x))
    assert torch.equal(decoded[..., :10], x)
    assert decoded.shape[-1] == 12
    assert (decoded[..., 10:] == 0).all()


def test_oversampling_counts_frames_of_the_raised_rate() -> None:
    transform = PatchedPretransform(channels=1, patch_size=8, oversampling=2)
    assert transform.downsampling_ratio == 4
    t = torch.arange(4096.0)
    x = torch.sin(0.3 * t)[None, None]
    z = transform.encode(x)
    assert z.shape == (1, 8, 4096 // transform.downsampling_ratio)
    inside = slice(100, -100)  # the resampling filter meets the ends
    torch.testing.assert_close(transform.decode(z)[..., inside], x[..., inside], rtol=0, atol=2e-3)
    assert set(transform.state_dict()) == {"input_upsampler.kernel", "output_downsampler.kernel"}


def test_without_oversampling_there_are_no_tensors() -> None:
    assert PatchedPretransform(channels=1, patch_size=8).state_dict() == {}


@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_any_length(length: int) -> None:
    transform = PatchedPretransform(channels=1, patch_size=8)
    assert transform.encode(torch.randn(1, 1, length)).shape[-1] == -(-length // 8)
