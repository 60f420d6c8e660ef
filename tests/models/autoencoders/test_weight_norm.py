import copy
import warnings

import pytest
import torch
from torch import nn

from stable_audio_tools.models.autoencoders.weight_norm import (
    WNConv1d,
    WNConv2d,
    WNConvTranspose1d,
    fold_weight_norm,
    folded_weight_norm,
    remove_weight_norm_from_model,
    unfold_weight_norm,
)

LAYERS = {
    "conv1d": (lambda: WNConv1d(4, 6, 3, stride=2, padding=1), nn.Conv1d, (2, 4, 16)),
    "conv2d": (lambda: WNConv2d(4, 6, 3), nn.Conv2d, (2, 4, 8, 8)),
    "transposed": (lambda: WNConvTranspose1d(4, 6, 4, stride=2), nn.ConvTranspose1d, (2, 4, 16)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    make, _, shape = LAYERS[request.param]
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        layer.weight_g.mul_(1.5)
    return layer, torch.randn(shape)


def with_torchs_own(name, layer):
    """The same layer, normalised by torch's hook."""
    plain = LAYERS[name][1]
    twin = {
        "conv1d": lambda: plain(4, 6, 3, stride=2, padding=1),
        "conv2d": lambda: plain(4, 6, 3),
        "transposed": lambda: plain(4, 6, 4, stride=2),
    }[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        twin = nn.utils.weight_norm(twin)
    twin.load_state_dict(layer.state_dict())  # strict: the names and shapes are the same
    return twin


@pytest.mark.parametrize("name", LAYERS)
def test_equals_torchs_weight_norm_in_names_values_and_gradients(name):
    make, _, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    twin = with_torchs_own(name, layer)
    assert set(layer.state_dict()) == {"weight_g", "weight_v", "bias"}
    ours, theirs = layer(x), twin(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(layer.weight_g.grad, twin.weight_g.grad)
    torch.testing.assert_close(layer.weight_v.grad, twin.weight_v.grad)


def test_a_new_layer_has_the_initial_weight_of_the_plain_one():
    torch.manual_seed(3)
    plain = nn.Conv1d(4, 6, 3)
    torch.manual_seed(3)
    torch.testing.assert_close(WNConv1d(4, 6, 3).weight, plain.weight)


def test_no_warning_is_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WNConv1d(4, 6, 3)(torch.randn(1, 4, 8))


def test_deepcopy_after_a_pass_is_independent(layer_and_input):
    layer, x = layer_and_input
    fold_weight_norm(layer).eval()
    with torch.no_grad():
        before = layer(x)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight_g.mul_(2)
        torch.testing.assert_close(layer(x), before)
        assert not torch.allclose(twin(x), before)
    layer.train()(x).sum().backward()
    copy.deepcopy(layer)


def test_folding_changes_neither_output_nor_state_dict(layer_and_input):
    layer, x = layer_and_input
    layer.eval()
    with torch.no_grad():
        before = layer(x)
        state = copy.deepcopy(layer.state_dict())
        fold_weight_norm(layer)
        torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
        assert layer.weight is layer.weight  # kept, not made again
    assert list(layer.state_dict()) == list(state)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])
    unfold_weight_norm(layer)
    with torch.no_grad():
        assert layer.weight is not layer.weight


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight_g.mul_(3),
        lambda layer: layer.weight_v.add_(torch.arange(6.0)[:, None, None]),
        lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
        lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True),
        lambda layer: setattr(layer, "weight_g", nn.Parameter(layer.weight_g * 2)),
        lambda layer: layer.double(),
    ],
    ids=["gain", "direction", "load", "assign", "replace", "cast"],
)
def test_a_folded_layer_notices_changed_parameters(change):
    layer = fold_weight_norm(WNConv1d(4, 6, 3)).eval()
    with torch.no_grad():
        layer.weight
        change(layer)
        torch.testing.assert_close(layer.weight, torch._weight_norm(layer.weight_v, layer.weight_g, 0))


def test_a_folded_layer_still_trains():
    layer = fold_weight_norm(WNConv1d(4, 6, 3)).eval()
    with torch.no_grad():
        layer.weight
    layer(torch.randn(1, 4, 8)).sum().backward()
    assert layer.weight_g.grad is not None and layer.weight_v.grad is not None


def test_an_optimizer_step_is_seen_after_folding():
    layer = fold_weight_norm(WNConv1d(4, 6, 3)).eval()
    x = torch.randn(1, 4, 8)
    with torch.no_grad():
        before = layer(x)
    layer(x).sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    with torch.no_grad():
        assert not torch.allclose(layer(x), before)


def test_the_context_folds_inside_only_and_respects_what_was_folded():
    model = nn.Sequential(WNConv1d(4, 4, 3), WNConv1d(4, 4, 3)).eval()
    fold_weight_norm(model[1])
    with torch.no_grad():
        with folded_weight_norm(model):
            assert model[0].weight is model[0].weight
        assert model[0].weight is not model[0].weight
        assert model[1].weight is model[1].weight


def test_inference_mode_can_fold():
    with torch.inference_mode():
        layer = fold_weight_norm(WNConv1d(4, 6, 3)).eval()
        assert layer.weight is layer.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype, layer_and_input):
    layer, x = layer_and_input
    wanted = layer(x)
    got = layer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    # Half precision keeps about three digits.
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=5e-2 if dtype == torch.bfloat16 else 1e-2)


def test_meta_device_and_materialising():
    with torch.device("meta"):
        layer = WNConv1d(4, 6, 3)
        assert layer(torch.empty(1, 4, 8)).shape == (1, 6, 6)
    filled = WNConv1d(4, 6, 3)
    layer.load_state_dict(filled.state_dict(), assign=True)
    x = torch.randn(1, 4, 8)
    torch.testing.assert_close(layer(x), filled(x))


def test_removal_leaves_a_plain_convolution(layer_and_input):
    layer, x = layer_and_input
    wanted = layer(x)
    assert remove_weight_norm_from_model(layer) is layer
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert [name for name, _ in layer.named_parameters()].count("weight") == 1
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-6)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    remove_weight_norm_from_model(layer)  # a second time: nothing to do


def test_removal_knows_torchs_own_kinds_and_leaves_the_rest():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hooked = nn.utils.weight_norm(nn.Conv1d(4, 4, 3, padding=1))
    new = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 4, 1))
    model = nn.Sequential(hooked, new, WNConv1d(4, 4, 1), nn.Conv1d(4, 4, 1), spectral, nn.LayerNorm(8)).eval()
    x = torch.randn(1, 4, 8)
    wanted = model(x)
    remove_weight_norm_from_model(model)
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-6)
    assert not [key for key in model.state_dict() if "weight_g" in key or "0.original" in key.replace("4.", "")]
    assert "4.parametrizations.weight.original" in model.state_dict()


def test_loads_torchs_newer_names_and_removed_norms():
    torch.manual_seed(0)
    source = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3))
    x = torch.randn(1, 4, 8)
    layer = WNConv1d(4, 6, 3)
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(layer(x), source(x))
    plain = nn.Conv1d(4, 6, 3)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(x), plain(x))


def test_loading_with_a_missing_gain_is_an_error():
    layer = WNConv1d(4, 6, 3)
    state = layer.state_dict()
    state.pop("weight_g")
    with pytest.raises(RuntimeError, match="weight_g"):
        layer.load_state_dict(state)


def test_a_frozen_layer_stays_frozen_after_removal():
    layer = WNConv1d(4, 6, 3).requires_grad_(False)
    remove_weight_norm_from_model(layer)
    assert not layer.weight.requires_grad
