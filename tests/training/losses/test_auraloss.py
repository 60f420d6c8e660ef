"""Spectral losses against closed forms and against each other."""

import math

import pytest
import torch

from stable_audio_tools.training.losses.auraloss import (
    MelSTFTLoss,
    MultiResolutionSTFTLoss,
    SDSDRLoss,
    SISDRLoss,
    STFTLoss,
    SumAndDifferenceSTFTLoss,
    stereo_terms,
)

SIZES = {"fft_sizes": [256, 128], "hop_sizes": [64, 32], "win_lengths": [256, 100]}


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 2048, generator=generator), torch.randn(2, 2, 2048, generator=generator)


def test_terms_of_a_scaled_signal_are_known(pair):
    x, _ = pair
    loss = STFTLoss(256, 64, 256, output="full", w_lin_mag=1.0, w_phs=1.0, eps=1e-12)
    _, convergence, log_magnitude, linear, phase = loss(0.5 * x, x)
    magnitude = torch.stft(x.flatten(0, 1), 256, 64, window=torch.hann_window(256), return_complex=True).abs()
    torch.testing.assert_close(convergence, torch.full_like(convergence, 0.5))
    # Bins near zero sit on the magnitude floor in both signals, so not every ratio is exactly one half.
    torch.testing.assert_close(log_magnitude, torch.tensor(math.log(2.0)), rtol=1e-4, atol=0)
    torch.testing.assert_close(linear, 0.5 * magnitude.mean())
    # |y / 2 - y| over the mean magnitude, 3 / 4 |y|
    torch.testing.assert_close(phase, torch.full_like(phase, 0.5 / 0.75), rtol=1e-3, atol=1e-3)


def test_convergence_divides_by_the_second_signal(pair):
    x, _ = pair
    loss = STFTLoss(256, 64, 256, w_log_mag=0.0)
    torch.testing.assert_close(loss(3 * x, x), torch.tensor(2.0))
    torch.testing.assert_close(loss(x, 3 * x), torch.tensor(2 / 3))


def test_gradient_at_silence_is_finite():
    x = torch.zeros(1, 1, 2048, requires_grad=True)
    STFTLoss(256, 64, 256, w_sc=0.0)(x, torch.randn(1, 1, 2048)).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_resolutions_are_averaged(pair):
    sizes = list(zip(*SIZES.values()))
    alone = [STFTLoss(*size)(*pair) for size in sizes]
    torch.testing.assert_close(MultiResolutionSTFTLoss(**SIZES)(*pair), sum(alone) / 2)


def test_full_output_lists_each_resolution(pair):
    loss, *terms = MultiResolutionSTFTLoss(**SIZES, output="full")(*pair)
    assert loss.ndim == 0 and [len(term) for term in terms] == [2, 2, 2, 2]


def test_one_transform_of_each_channel_gives_all_four_views(pair):
    options = {"perceptual_weighting": True, "sample_rate": 16000}
    loss = MultiResolutionSTFTLoss(**SIZES, **options)
    x, y = pair
    terms = stereo_terms(loss, x, y)
    _, of_sum, of_difference = SumAndDifferenceSTFTLoss(**SIZES, **options, output="full")(x, y)
    # A-weighting and transform are linear; only the order of float32 additions differs.
    torch.testing.assert_close(terms.sum, of_sum, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms.difference, of_difference, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms.left, loss(x[:, :1], y[:, :1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(terms.right, loss(x[:, 1:], y[:, 1:]), rtol=1e-4, atol=0)


def test_weighted_loss_counts_low_frequencies_less():
    time = torch.arange(8192) / 44100
    tone = {hertz: torch.sin(2 * math.pi * hertz * time)[None, None] for hertz in (60.0, 2000.0)}
    silence = torch.zeros(1, 1, 8192)
    loss = STFTLoss(
        2048, 512, 2048, w_sc=0.0, w_log_mag=0.0, w_lin_mag=1.0, perceptual_weighting=True, sample_rate=44100
    )
    assert loss(tone[2000.0], silence) > 5 * loss(tone[60.0], silence)


def test_scale_invariance_ignores_gain(pair):
    x, y = pair
    loss = STFTLoss(256, 64, 256, w_log_mag=0.0, scale_invariance=True)
    torch.testing.assert_close(loss(x, 7 * y), loss(x, y), rtol=1e-4, atol=0)
    assert loss(x, 2 * x) < 1e-4


def test_batch_dimension_can_be_kept(pair):
    loss = STFTLoss(256, 64, 256, retain_batch_dim=True)(*pair)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss.mean(), STFTLoss(256, 64, 256)(*pair))


def test_mel_and_chroma_bands(pair):
    assert MelSTFTLoss(16000, 256, 64, 256, n_mels=20).fb.shape == (1, 20, 129)
    chroma = STFTLoss(256, 64, 256, scale="chroma", sample_rate=16000)
    assert chroma.fb.shape == (1, 12, 129)
    assert torch.isfinite(chroma(*pair))


def test_filterbanks_match_librosa():
    filters = pytest.importorskip("librosa.filters")
    from stable_audio_tools.training.losses.filters import chroma_bands, mel_bands

    mel = torch.from_numpy(filters.mel(sr=16000, n_fft=512, n_mels=40))
    torch.testing.assert_close(mel_bands(16000, 512, 40), mel, atol=1e-6, rtol=1e-4)
    for classes in (12, 24):
        chroma = torch.from_numpy(filters.chroma(sr=16000, n_fft=512, n_chroma=classes)).float()
        torch.testing.assert_close(chroma_bands(16000, 512, classes), chroma, atol=1e-6, rtol=1e-4)


def test_half_precision_input_is_compared_in_float32(pair):
    x, y = pair
    loss = MultiResolutionSTFTLoss(**SIZES)(x.half(), y.half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, MultiResolutionSTFTLoss(**SIZES)(x, y), rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", [SISDRLoss, SDSDRLoss])
def test_distortion_ratio_of_orthogonal_noise(kind):
    time = torch.arange(4096) / 4096
    target = torch.sin(2 * math.pi * 8 * time)[None, None]
    noise = torch.cos(2 * math.pi * 8 * time)[None, None]
    # One tenth of the amplitude is 20 decibels.
    torch.testing.assert_close(kind()(target + 0.1 * noise, target), torch.tensor(-20.0), rtol=1e-3, atol=0)


def test_only_the_invariant_ratio_ignores_gain():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 1, 4096, generator=generator)
    noisy = target + 0.1 * torch.randn(1, 1, 4096, generator=generator)
    torch.testing.assert_close(SISDRLoss()(0.5 * noisy, target), SISDRLoss()(noisy, target), rtol=1e-3, atol=0)
    assert SDSDRLoss()(0.5 * noisy, target) > SDSDRLoss()(noisy, target) + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w_sc": 0.0, "w_log_mag": 0.0}, "all zero"),
        ({"mag_distance": "L3"}, "L1 or L2"),
        ({"perceptual_weighting": True}, "sample_rate is needed"),
        ({"window": "no_such_window"}, "no window named"),
        ({"scale": "mel", "sample_rate": 16000}, "needs n_bins"),
        ({"scale": "bark", "sample_rate": 16000}, "mel or chroma"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        STFTLoss(**arguments)


def test_wrong_lists_and_channels_are_explained(pair):
    with pytest.raises(ValueError, match="of one length"):
        MultiResolutionSTFTLoss([256], [64, 32], [256])
    with pytest.raises(ValueError, match="n_bins has 3 entries"):
        MultiResolutionSTFTLoss(**SIZES, scale="mel", sample_rate=16000, n_bins=[8, 8, 8])
    with pytest.raises(ValueError, match="got 1 channels"):
        SumAndDifferenceSTFTLoss(**SIZES)(pair[0][:, :1], pair[1][:, :1])


def test_filter_names_and_gradient(pair):
    loss = SumAndDifferenceSTFTLoss(**SIZES, perceptual_weighting=True, sample_rate=16000)
    names = [f"mrstft.stft_losses.{index}.prefilter.fir.weight" for index in range(2)]
    assert list(loss.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in loss.parameters())
