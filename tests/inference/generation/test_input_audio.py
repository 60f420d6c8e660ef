"""Audio that users hand in, masks, and what is kept to the sample."""

import pytest
import torch

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.inference.generation.audio import batch_mask, keep_region, resize_mask, unpack_audio
from stable_audio_tools.inference.utils import prepare_audio, set_audio_channels

NOISE = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))


def test_channels_are_mixed_spread_or_cut() -> None:
    torch.testing.assert_close(set_audio_channels(NOISE[None], 1), NOISE.mean(0)[None, None])
    assert torch.equal(set_audio_channels(NOISE[None], 2), NOISE[None, :2])
    assert torch.equal(set_audio_channels(NOISE[:1], 2), NOISE[:1][:, None].repeat(1, 2, 1))


@pytest.mark.parametrize("shape", [(200,), (1, 200), (2, 200), (4, 2, 200)])
def test_audio_is_filled_up_with_silence_or_cut(shape: tuple[int, ...]) -> None:
    audio = torch.randn(shape)
    longer = prepare_audio(audio, 16000, 16000, 300, 2, "cpu")
    assert longer.shape == (shape[0] if len(shape) == 3 else 1, 2, 300)
    assert not longer[..., 200:].any()
    assert torch.equal(prepare_audio(audio, 16000, 16000, 150, 2, "cpu"), longer[..., :150])


def test_another_rate_is_resampled() -> None:
    """A sine stays that sine, away from the ends where the filter meets silence."""
    time = torch.arange(4000) / 8000
    audio = prepare_audio(torch.sin(2 * torch.pi * 440 * time), 8000, 16000, 8000, 1, "cpu")
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 16000)
    torch.testing.assert_close(audio[0, 0, 100:-100], expected[100:-100], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(2, 5, dtype=torch.int16), "divide integers by their range"),
        (torch.zeros(2, 0), "the audio is empty"),
        (torch.zeros(2, 1, 1, 5), "must be shaped"),
    ],
)
def test_audio_that_is_none(audio: torch.Tensor, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        prepare_audio(audio, 16000, 16000, 10, 2, "cpu")


def test_pairs_the_wrong_way_round_are_named() -> None:
    assert unpack_audio((16000, NOISE), "init_audio")[0] == 16000
    with pytest.raises(ValueError, match=r"init_audio must be a pair \(sample_rate, audio\).* got \(Tensor, int\)"):
        unpack_audio((NOISE, 16000), "init_audio")
    with pytest.raises(ValueError, match="got Tensor"):
        unpack_audio(NOISE, "init_audio")
    with pytest.raises(ValueError, match="whole number above 0, got 0"):
        unpack_audio((0, NOISE), "init_audio")


def test_masks_of_every_accepted_shape() -> None:
    row = (torch.arange(6) < 3).float()
    for mask in (row, row[None], row[None, None], row.bool(), row.numpy()):
        assert torch.equal(batch_mask(mask, 3), row.expand(3, 1, 6))
    with pytest.raises(ValueError, match=r"\(samples,\) or \(3, samples\) for batch_size 3, got \(2, 6\)"):
        batch_mask(row.expand(2, 6), 3)
    with pytest.raises(ValueError, match="inpaint_mask must be shaped"):
        batch_mask(torch.zeros(1, 2, 6), 1)
    assert resize_mask(row[None, None], 2).tolist() == [[[1, 0]]]


@pytest.mark.parametrize("crossfade", [0, 1, 10])
def test_kept_samples_are_the_original_bit_for_bit(crossfade: int) -> None:
    generator = torch.Generator().manual_seed(1)
    made, original = torch.randn(2, 2, 200, generator=generator), torch.randn(1, 2, 200, generator=generator)
    mask = torch.ones(2, 1, 200)
    mask[0, :, 80:120] = 0  # the second item is kept whole
    joined = keep_region(made, original, mask, crossfade)
    assert torch.equal(joined[1], original[0])
    assert torch.equal(joined[0, :, : 80 - crossfade], original[0, :, : 80 - crossfade])
    assert torch.equal(joined[0, :, 120 + crossfade :], original[0, :, 120 + crossfade :])
    assert torch.equal(joined[0, :, 80:120], made[0, :, 80:120])
    if crossfade:
        ramp = torch.arange(crossfade, 0, -1) / (crossfade + 1)  # the nearer to the seam, the more is generated
        faded = torch.lerp(made[0, :, 80 - crossfade : 80], original[0, :, 80 - crossfade : 80], ramp)
        torch.testing.assert_close(joined[0, :, 80 - crossfade : 80], faded)


def test_a_mask_of_frames_and_a_longer_original_are_fitted() -> None:
    made, original = torch.zeros(1, 2, 16), torch.ones(1, 2, 20)
    mask = torch.tensor([[[1.0, 0.0]]])
    assert keep_region(made, original, mask, 0)[0, 0].tolist() == [1.0] * 8 + [0.0] * 8
    with pytest.raises(ValueError, match="must not be negative"):
        keep_region(made, original, mask, -1)
