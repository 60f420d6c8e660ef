import pytest
import torch
from torch import nn

from stable_audio_tools.models.activations import Snake1d, SnakeBeta
from stable_audio_tools.models.autoencoders.layers import (
    AntiAliased,
    kaiser_sinc_filter,
    make_activation,
    run_layer,
)


def filled(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.3, 1.5)
    return module


def test_snake_beta_is_its_formula_with_and_without_gradients():
    layer, x = filled(SnakeBeta(5)), torch.randn(2, 5, 33, dtype=torch.float64)
    layer.double()
    alpha, beta = layer.alpha.exp()[None, :, None], layer.beta.exp()[None, :, None]
    wanted = x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)
    torch.testing.assert_close(layer(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)


def test_snake_is_its_formula_with_and_without_gradients():
    layer, x = filled(Snake1d(5)).double(), torch.randn(2, 5, 33, dtype=torch.float64)
    wanted = x + torch.sin(layer.alpha * x) ** 2 / (layer.alpha + 1e-9)
    torch.testing.assert_close(layer(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)


def test_inference_leaves_the_input_alone():
    layer, x = filled(SnakeBeta(5)), torch.randn(2, 5, 33)
    before = x.clone()
    with torch.no_grad():
        layer(x)
    assert torch.equal(x, before)


def test_linear_scale_and_untrained_parameters():
    layer = SnakeBeta(3, alpha=0.5, alpha_trainable=False, alpha_logscale=False)
    assert torch.equal(layer.alpha, torch.full((3,), 0.5)) and not layer.alpha.requires_grad
    x = torch.randn(1, 3, 7)
    torch.testing.assert_close(layer(x), x + torch.sin(0.5 * x) ** 2 / 0.5)


def test_gradients_are_right():
    layer = filled(SnakeBeta(2)).double()
    x = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


def test_filter_passes_a_constant_and_stops_above_the_cutoff():
    taps = kaiser_sinc_filter(0.25, 0.3, 12).double().flatten()
    assert taps.sum().item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(taps, taps.flip(0))
    response = torch.fft.rfft(taps, 256).abs()
    assert response[:32].min() > 0.9  # an eighth of the rate passes
    assert response[-8:].max() < 0.01  # half the rate does not


@pytest.mark.parametrize("kind", ["snake", "elu"])
def test_equals_alias_free_torch(kind):
    alias_free_torch = pytest.importorskip("alias_free_torch")
    ours = filled(make_activation(kind, 4, antialias=True))
    theirs = alias_free_torch.Activation1d(make_activation(kind, 4))
    theirs.load_state_dict(ours.state_dict())  # strict: the same names and filters
    for name, buffer in alias_free_torch.Activation1d(nn.ELU()).named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)
    x = torch.randn(2, 4, 50)
    torch.testing.assert_close(ours(x), theirs(x))


def test_antialiasing_removes_folded_harmonics():
    n, frequency = 4096, 1400
    tone = torch.cos(2 * torch.pi * (frequency / n) * torch.arange(n))[None, None]
    relu = nn.ReLU()

    def folded(layer):
        return torch.fft.rfft(layer(tone).flatten()).abs()[n - 2 * frequency]  # where the second harmonic folds to

    assert folded(AntiAliased(relu)) < 0.3 * folded(relu)  # twelve taps leave a quarter of it
    assert folded(AntiAliased(relu, kernel_size=48)) < 0.03 * folded(relu)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"no activation named 'swish'; allowed: elu, snake, none"):
        make_activation("swish", 4)


def test_recomputation_gives_the_same_gradients():
    layer = filled(SnakeBeta(3))
    x = torch.randn(1, 3, 8, requires_grad=True)
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    (wanted,) = torch.autograd.grad(run_layer(layer, x, recompute=False).sum(), x)
    (got,) = torch.autograd.grad(run_layer(layer, x, recompute=True).sum(), x)
    torch.testing.assert_close(got, wanted)
    assert len(calls) == 3  # once kept, then once forward and once again backward
    with torch.no_grad():
        run_layer(layer, x, recompute=True)
    assert len(calls) == 4
