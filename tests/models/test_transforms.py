"""Fixed transforms against SciPy, their inverses and the energy of what they transform."""

import pytest
import scipy.fft
import torch

from stable_audio_tools.models.transforms import (
    MDCT,
    PQMF,
    STDCT,
    ILDTransform,
    MeanChannelLog1pTransform,
    TightSpectrogram,
    dct,
    dct_2d,
    idct,
    idct_2d,
    tight_one_sided_complex_stft,
    tight_window,
)


@pytest.mark.parametrize("norm", [None, "ortho"])
@pytest.mark.parametrize("length", [7, 16])
def test_cosine_transforms_are_scipys(norm, length):
    x = torch.randn(3, 5, length, dtype=torch.float64)
    torch.testing.assert_close(dct(x, norm), torch.from_numpy(scipy.fft.dct(x.numpy(), norm=norm)))
    torch.testing.assert_close(idct(dct(x, norm), norm), x)
    torch.testing.assert_close(dct_2d(x, norm), torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=(1, 2), norm=norm)))
    torch.testing.assert_close(idct_2d(dct_2d(x, norm), norm), x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"center": True},
        {"win_size": 12},
        {"win_type": None},
        {"window": torch.hann_window(14)},
        {"hop_size": 5},
        {"center": True, "hop_size": 8},
    ],
)
def test_short_time_cosine_transform_is_inverted(options):
    transform = STDCT(16, options.get("hop_size", 4), **{k: v for k, v in options.items() if k != "hop_size"})
    x = torch.randn(2, 1, 15 * transform.hop_size)
    spectrum = transform(x)
    assert spectrum.shape == (2, 16, 16 if options.get("center") else 15 - transform.hop_size % 2)
    back = transform.inverse(spectrum)
    inside = slice(16, back.shape[-1] - 24)
    torch.testing.assert_close(back[..., inside], x[..., : back.shape[-1]][..., inside], atol=1e-4, rtol=1e-4)


def test_short_time_cosine_transform_refuses_what_cannot_be_inverted():
    with pytest.raises(ValueError, match="use a window of at most N samples"):
        STDCT(16, 4, win_size=20)
    with pytest.raises(ValueError, match="leave gaps"):
        transform = STDCT(16, 16, win_size=4)
        transform.inverse(transform(torch.randn(1, 1, 64)))


@pytest.mark.parametrize("normalize", [True, False])
def test_modified_cosine_transform_is_inverted(normalize):
    transform, x = MDCT(8, normalize), torch.randn(2, 1, 64)
    assert transform(x).shape == (2, 8, 9)
    torch.testing.assert_close(transform.inverse(transform(x)), x, atol=1e-5, rtol=1e-5)


def test_filter_bank_separates_and_joins_bands():
    bank = PQMF()
    tone = torch.sin(torch.arange(4096) * torch.pi * 0.625)[None]  # the middle of the third band of four
    powers = bank(tone).square().mean(-1)[0]
    assert powers.argmax() == 2 and powers[2] > 1e4 * powers[0]
    back = bank.synthesis(bank(tone))[0, 0]
    torch.testing.assert_close(back[200:-200], tone[0, 200:-200], atol=0.02, rtol=0)


@pytest.mark.parametrize("hop", [16, 32, 8])
def test_tight_frames_keep_the_energy(hop):
    squares = tight_window(64, hop).double().square()
    torch.testing.assert_close(
        squares.unflatten(0, (-1, hop)).sum(0), torch.ones(hop, dtype=torch.float64), rtol=1e-5, atol=0
    )
    x = torch.nn.functional.pad(torch.randn(2, 512, dtype=torch.float64), (64, 64))
    spectrum = tight_one_sided_complex_stft(x, 64, hop)
    torch.testing.assert_close(spectrum.abs().square().sum((1, 2)), x.square().sum(1), rtol=1e-5, atol=0)


def test_demodulation_holds_the_phase_of_a_steady_tone():
    tone = torch.cos(2 * torch.pi * 5 / 64 * torch.arange(1024))[None]
    for mode, hop in (("sign", 32), ("rot", 16)):
        phase = tight_one_sided_complex_stft(tone, 64, hop, demod_mode=mode)[0, 5].angle()
        torch.testing.assert_close(phase, phase[:1].expand_as(phase), atol=1e-3, rtol=0)
    assert tight_one_sided_complex_stft(tone, 64, 16)[0, 5].angle().std() > 0.5


def test_tight_spectrogram_shapes_powers_and_fixed_lengths():
    x = torch.randn(2, 3, 256)
    spectrum = TightSpectrogram(n_fft=32)(x)
    assert spectrum.shape == (2, 3, 17, 15)
    torch.testing.assert_close(TightSpectrogram(n_fft=32, power=2)(x), spectrum.abs().square())
    torch.testing.assert_close(TightSpectrogram(n_fft=32)(x[:, 0]), spectrum[:, 0])
    assert TightSpectrogram(n_fft=32, onesided=False, pad=4)(x).shape == (2, 3, 32, 15)
    with pytest.warns(UserWarning, match="hop_length is 8; a tight spectrogram with n_fft 32 uses 16"):
        TightSpectrogram(n_fft=32, hop_length=8)


def test_level_differences_and_log_means():
    spectra = torch.rand(2, 2, 33, 5)
    difference = ILDTransform(16000, 64, 8)
    assert torch.equal(difference(spectra[:, :1].expand(-1, 2, -1, -1)), torch.zeros(2, 8, 5))
    assert (difference(spectra * torch.tensor([2.0, 1.0])[:, None, None]) > difference(spectra)).float().mean() > 0.9
    torch.testing.assert_close(MeanChannelLog1pTransform()(spectra).expm1(), spectra.mean(1))
