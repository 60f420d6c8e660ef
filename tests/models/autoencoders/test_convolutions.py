import pytest
import torch
from torch import nn

from stable_audio_tools.models.autoencoders.layers import Conv1d, ConvTranspose1d


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 7, "padding": 9, "dilation": 3},
        {"kernel_size": 8, "stride": 4, "padding": 2},
        {"kernel_size": 6, "padding": "same", "bias": False},
        {"kernel_size": 5, "padding": 2, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels_innermost", [False, True])
def test_equals_the_plain_convolution(options, channels_innermost):
    torch.manual_seed(0)
    ours = Conv1d(4, 6, **options)
    plain = nn.Conv1d(4, 6, **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 40)
    x = x.mT.contiguous().mT if channels_innermost else x
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 8, "stride": 4, "padding": 2},
        {"kernel_size": 6, "stride": 3, "padding": 2, "output_padding": 1},
        {"kernel_size": 4, "stride": 2, "groups": 2, "bias": False},
        {"kernel_size": 3, "dilation": 2},
    ],
    ids=str,
)
def test_equals_the_plain_transposed_convolution(options):
    torch.manual_seed(0)
    ours = ConvTranspose1d(4, 6, **options)
    plain = nn.ConvTranspose1d(4, 6, **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours(x), plain(x))


def test_layers_hand_the_layout_on_at_inference():
    model = nn.Sequential(Conv1d(4, 8, 3), nn.ELU(), ConvTranspose1d(8, 4, 4, stride=2))
    with torch.no_grad():
        assert model(torch.randn(2, 4, 16)).stride(1) == 1
    assert model(torch.randn(2, 4, 16)).is_contiguous()
