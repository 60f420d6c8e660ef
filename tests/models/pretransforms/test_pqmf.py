"""The filter bank: bands in order, and almost perfect reconstruction."""

import pytest
import torch

from stable_audio_tools.models.pretransforms import PQMFPretransform
from stable_audio_tools.models.pretransforms.pqmf import design_prototype


@pytest.mark.parametrize("num_bands", [2, 8, 16])
def test_decoding_gives_the_audio_back_to_a_thousandth(num_bands: int) -> None:
    """The bands alias below the attenuation asked for; what stays is the unevenness of their powers."""
    torch.manual_seed(0)
    transform = PQMFPretransform(attenuation=100, num_bands=num_bands, channels=2)
    x = torch.randn(1, 2, 8192)
    z = transform.encode(x)
    assert z.shape == (1, 2 * num_bands, 8192 // num_bands)
    decoded = transform.decode(z)
    inside = slice(2048, min(decoded.shape[-1], 8192) - 2048)  # filters are cut off at the ends
    error = (decoded[..., inside] - x[..., inside]).pow(2).mean().sqrt()
    assert error < 2e-3


def test_a_tone_lands_in_its_band() -> None:
    transform = PQMFPretransform(num_bands=8)
    for band in range(8):
        frequency = torch.pi * (band + 0.5) / 8
        z = transform.encode(torch.cos(frequency * torch.arange(4096.0))[None, None])
        assert z[0].pow(2).mean(-1).argmax() == band


def test_the_end_is_filled_up() -> None:
    transform = PQMFPretransform(num_bands=8)
    x = torch.randn(1, 1, 1003)
    padded = torch.nn.functional.pad(x, (0, 5))
    torch.testing.assert_close(transform.encode(x), transform.encode(padded))


def test_the_prototype_is_a_symmetric_low_pass_of_unit_gain() -> None:
    taps = torch.tensor(design_prototype(100, 8))
    torch.testing.assert_close(taps, taps.flip(0))
    assert taps.sum().item() == pytest.approx(1.0, abs=1e-3)
    spectrum = torch.fft.rfft(taps, 4096).abs()
    stop_band = spectrum[2 * 4096 // 2 // 8 :]
    assert stop_band.max() < 10 ** (-90 / 20)


def test_names_and_shapes_of_files() -> None:
    shapes = {name: tuple(value.shape) for name, value in PQMFPretransform(num_bands=8).state_dict().items()}
    assert shapes["pqmf.filter_bank"] == (8, 256)
    assert len(shapes["pqmf.prototype"]) == 1
