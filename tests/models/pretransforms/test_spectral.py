"""Spectra and filter banks of critics: inverses, running statistics, messages."""

import pytest
import torch

from stable_audio_tools.models.pretransforms import ComplexSTFTPretransform, HILPQMFPretransform


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_flatten": False, "use_compander": False, "demodulate": False, "value_norm": "none"},
        {"use_mid_side": True, "center": True},
        {"flatten_alpha": 0.0, "gl_correction_steps": 2},
    ],
)
def test_complex_spectra_are_inverted(options):
    bank, x = ComplexSTFTPretransform(2, n_fft=32, ema_beta=0.3, **options).train(), torch.randn(2, 2, 500)
    bank.encode(x)
    z = bank.eval().encode(x)
    assert z.shape[:2] == (2, bank.encoded_channels) == (2, 68)
    back = bank.decode(z)
    assert back.shape == x.shape
    torch.testing.assert_close(back[..., 32:450], x[..., 32:450], atol=1e-3, rtol=1e-3)
    assert bank.decode(z, length=200).shape[-1] == 200


def test_statistics_follow_training_only_and_not_when_frozen():
    x = 3 * torch.randn(2, 1, 400)
    bank = ComplexSTFTPretransform(1, n_fft=16, ema_beta=0.5).eval()
    bank(x)
    assert torch.equal(bank.psd, torch.ones_like(bank.psd))
    bank.train()(x)
    assert bank.psd.mean() > 1.5 and not torch.equal(bank.s2a, torch.ones_like(bank.s2a))
    assert set(bank.state_dict()) == {"psd", "s2a"}
    frozen = ComplexSTFTPretransform(1, n_fft=16, freeze_stats=True).train()
    frozen(x)
    assert torch.equal(frozen.psd, torch.ones_like(frozen.psd))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="value_norm must be 'tight' or 'none'"):
        ComplexSTFTPretransform(1, value_norm="loose")
    bank = ComplexSTFTPretransform(2, n_fft=16)
    with pytest.raises(ValueError, match="audio has 1 channels, and this transform takes 2"):
        bank.encode(torch.randn(1, 1, 64))
    with pytest.raises(ValueError, match="pass length, or encode audio first"):
        bank.decode(torch.randn(1, 36, 4))


def test_filter_bank_treats_each_channel_by_itself():
    bank, x = HILPQMFPretransform(2, subbands=4, taps=62, beta=9.0, cutoff_freq=0.142), torch.randn(1, 2, 512)
    bands = bank.encode(x)
    assert bands.shape == (1, 8, 128)
    x[:, 1] = 0
    assert torch.equal(bank.encode(x)[:, :4], bands[:, :4]) and bank.encode(x)[:, 4:].abs().max() == 0
    torch.testing.assert_close(bank.decode(bank.encode(x))[0, 0, 64:-64], x[0, 0, 64:-64], atol=0.1, rtol=0)
