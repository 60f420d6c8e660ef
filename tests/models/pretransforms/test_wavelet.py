"""The wavelet transform against PyWavelets' filters, and its own inverse."""

import pytest
import torch

from stable_audio_tools.models.pretransforms import WaveletPretransform
from stable_audio_tools.models.pretransforms.wavelet import filters

WAVELETS = ["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"]


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_filters_are_those_of_pywavelets(wavelet: str) -> None:
    pywt = pytest.importorskip("pywt")
    bank = torch.tensor(pywt.Wavelet(wavelet).filter_bank, dtype=torch.float32)[:, 1:]  # its first taps are all zero
    analysis, synthesis = filters(wavelet)
    torch.testing.assert_close(analysis, bank[:2].flip(-1))
    torch.testing.assert_close(synthesis, bank[2:])


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("levels", [1, 3])
def test_decoding_gives_the_audio_back(wavelet: str, levels: int) -> None:
    torch.manual_seed(0)
    transform = WaveletPretransform(channels=2, levels=levels, wavelet=wavelet)
    x = torch.randn(3, 2, 128)
    z = transform.encode(x)
    assert z.shape == (3, 2 * 2**levels, 128 // 2**levels)
    # float32 through ten levels of filters that sum to more than one
    torch.testing.assert_close(transform.decode(z), x, rtol=0, atol=1e-5)


def test_shortest_audio_is_what_the_message_says() -> None:
    transform = WaveletPretransform(channels=1, levels=3, wavelet="bior4.4")
    with pytest.raises(ValueError, match="takes multiples of 8, at least 32; pad it to 32"):
        transform.encode(torch.randn(1, 1, 24))
    with pytest.raises(ValueError, match=r"audio of 100 samples: .* pad it to 104"):
        transform.encode(torch.randn(1, 1, 100))
    shortest = torch.randn(1, 1, 32)
    torch.testing.assert_close(transform.decode(transform.encode(shortest)), shortest, rtol=0, atol=1e-5)


def test_a_smooth_signal_lands_in_the_low_band() -> None:
    x = torch.sin(torch.linspace(0, 6, 256))[None, None]
    z = WaveletPretransform(channels=1, levels=2, wavelet="bior4.4").encode(x)
    assert z[:, 0].pow(2).mean() > 1000 * z[:, 1:].pow(2).mean()
