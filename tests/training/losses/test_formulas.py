"""The spectral losses of 0.0.20: values at known signals, the version that is chosen, gradients at silence."""

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.training.losses import grouped_mmd
from stable_audio_tools.training.losses.auraloss import (
    CepstralLoss,
    FIRFilter,
    MultiResolutionSTFTLoss,
    SpectralContrastLoss,
    SpectralConvergenceLoss,
    STFTLoss,
    STFTMagnitudeLoss,
    SumAndDifferenceSTFTLoss,
    stereo_terms,
)

SIZES = {"fft_sizes": [256, 128], "hop_sizes": [64, 32], "win_lengths": [256, 128]}


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 2, 2048), torch.randn(2, 2, 2048)


def test_version_is_a_key_or_that_of_the_block(pair):
    published = STFTLoss(256, 64, 256)
    with stable_audio_tools.generation("0.0.20"):
        around = STFTLoss(256, 64, 256)
    chosen = STFTLoss(256, 64, 256, version="0.0.20")
    assert torch.equal(around(*pair), chosen(*pair))
    assert not torch.allclose(published(*pair), chosen(*pair))


def test_contrast_is_symmetric_and_at_most_one(pair):
    x, y = (z.abs() for z in pair)
    contrast = SpectralContrastLoss()
    torch.testing.assert_close(contrast(x, y), contrast(y, x))
    torch.testing.assert_close(contrast(3 * x, x), torch.full_like(contrast(x, y), 0.5))
    assert contrast(x, torch.zeros_like(x)).max() <= 1 and contrast(x * 0, y * 0).max() == 0
    with stable_audio_tools.generation("0.0.20"):
        assert torch.equal(SpectralConvergenceLoss()(x, y), contrast(x, y))
        assert STFTMagnitudeLoss()(x, x) == 0


@pytest.mark.parametrize("weights", [{"w_sc": 1.0}, {"w_log_mag": 1.0}, {"w_phs": 1.0}, {"w_cep": 1.0}])
def test_each_term_is_zero_for_equal_signals_and_has_gradients(pair, weights):
    weights = {"w_sc": 0.0, "w_log_mag": 0.0, **weights}
    loss = STFTLoss(256, 64, 256, version="0.0.20", **weights)
    x, y = pair
    torch.testing.assert_close(loss(x, x), torch.tensor(0.0), atol=1e-5, rtol=0)
    x = x.clone().requires_grad_()
    loss(x, y).backward()
    assert x.grad is not None and x.grad.abs().max() > 0 and torch.isfinite(x.grad).all()


def test_gradients_at_silence_are_finite():
    x = torch.zeros(1, 1, 2048, requires_grad=True)
    STFTLoss(256, 64, 256, w_phs=1.0, w_cep=1.0, version="0.0.20")(x, torch.randn(1, 1, 2048)).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_residual_loss_compares_the_difference_with_silence(pair):
    x, y = pair
    loss = STFTLoss(256, 64, 256, residual_loss=True, version="0.0.20")
    torch.testing.assert_close(loss(x, y), STFTLoss(256, 64, 256, version="0.0.20")(y - x, torch.zeros_like(x)))


def test_views_of_stereo_agree_with_the_published_class(pair):
    options = {**SIZES, "perceptual_weighting": True, "sample_rate": 16000, "version": "0.0.20"}
    terms = stereo_terms(MultiResolutionSTFTLoss(**options), *pair)
    _, of_sum, of_difference = SumAndDifferenceSTFTLoss(**options, output="full")(*pair)
    torch.testing.assert_close(terms.sum, of_sum, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.difference, of_difference, rtol=1e-4, atol=1e-5)


def test_k_weighting_keeps_1_khz_and_cuts_the_bass():
    weighting = FIRFilter(fs=16000, version="0.0.20")
    time = torch.arange(8000) / 16000
    gains = []
    for hertz in (20.0, 1000.0, 5000.0):
        x = torch.sin(2 * torch.pi * hertz * time).expand(1, 2, -1)
        gains.append((weighting(x).std() / x.std()).item())
    assert gains[0] < 0.6 and abs(gains[1] - 1) < 0.02 and gains[2] > 1.2
    assert weighting(x).shape == x.shape


def test_cepstrum_of_silence_is_zero():
    x = torch.randn(2, 9, 8, dtype=torch.complex64)
    expected = torch.fft.irfft((x.abs() + 0.1).log(), dim=-2).abs().mean()
    torch.testing.assert_close(CepstralLoss(log_eps=0.1)(x, torch.zeros_like(x)), expected)


def test_grouped_discrepancy_grows_with_the_difference():
    torch.manual_seed(0)
    a, b = torch.randn(8, 8, 5), torch.randn(8, 8, 5)
    assert grouped_mmd(a, a).abs() < 1e-6 < grouped_mmd(a, b) < grouped_mmd(a, 4 * b)
