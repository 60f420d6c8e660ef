import copy

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders import OobleckDecoder, OobleckEncoder
from stable_audio_tools.models.autoencoders.oobleck import ResidualUnit

SMALL = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}


def test_names_of_published_weights():
    encoder = OobleckEncoder(use_snake=True, antialias_activation=True, **SMALL).state_dict()
    decoder = OobleckDecoder(use_snake=True, antialias_activation=True, **SMALL).state_dict()
    nearest = OobleckDecoder(use_nearest_upsample=True, **SMALL).state_dict()
    assert {
        "layers.0.weight_g",
        "layers.1.layers.0.layers.0.alpha",
        "layers.1.layers.2.layers.3.weight_v",
        "layers.1.layers.3.beta",
        "layers.1.layers.4.bias",
        "layers.3.act.alpha",
        "layers.3.downsample.lowpass.filter",
        "layers.4.weight_g",
    } <= set(encoder)
    assert {"layers.1.layers.0.upsample.filter", "layers.1.layers.1.weight_g", "layers.3.act.beta"} <= set(decoder)
    assert "layers.0.act.alpha" not in decoder and "layers.4.bias" not in decoder
    assert "layers.1.layers.1.1.weight_g" in nearest and "layers.1.layers.1.1.bias" not in nearest


@pytest.mark.parametrize("options", [{}, {"use_snake": True}, {"antialias_activation": True}])
def test_lengths_with_even_strides(options):
    encoder, decoder = OobleckEncoder(**SMALL, **options), OobleckDecoder(**SMALL, **options)
    latents = encoder(torch.randn(1, 2, 8 * 20))
    assert latents.shape == (1, 32, 20)
    assert decoder(latents).shape == (1, 2, 8 * 20)


def test_an_odd_stride_loses_samples_on_decoding():
    sizes = {**SMALL, "strides": [3, 4]}
    latents = OobleckEncoder(**sizes)(torch.randn(1, 2, 12 * 20))
    assert latents.shape[-1] == 20
    assert OobleckDecoder(**sizes)(latents).shape[-1] == 12 * 20 - 1
    assert OobleckDecoder(use_nearest_upsample=True, **sizes)(latents).shape[-1] == 12 * 20


def test_the_last_activation_bounds_the_audio():
    latents = 100 * torch.randn(1, 32, 16)
    assert OobleckDecoder(**SMALL)(latents).abs().max() <= 1
    torch.manual_seed(0)
    loud = OobleckDecoder(final_tanh=False, **SMALL)
    with torch.no_grad():
        loud.layers[-2].weight_g.mul_(100)
    assert loud(latents).abs().max() > 1


def test_receptive_field_of_a_residual_unit():
    x = torch.randn(1, 3, 101, requires_grad=True)
    ResidualUnit(3, dilation=9)(x)[..., 50].sum().backward()
    touched = x.grad.abs().sum((0, 1)).nonzero().flatten()
    assert (touched.min(), touched.max()) == (50 - 27, 50 + 27)


def count_passes(network, x):
    """How often each residual unit's first layer runs in one forward and backward pass."""
    calls = []
    unit = next(module for module in network.modules() if isinstance(module, ResidualUnit))
    handle = unit.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network(x).sum().backward()
    handle.remove()
    return len(calls)


def test_activations_are_recomputed_in_training_and_on_request_only():
    x = torch.randn(1, 2, 64)
    asked, plain = OobleckEncoder(checkpointing=True, **SMALL), OobleckEncoder(**SMALL)
    assert count_passes(asked, x) == 2
    assert count_passes(asked.eval(), x) == 1
    assert count_passes(plain, x) == 1


def test_recomputation_changes_no_gradient():
    torch.manual_seed(0)
    plain = OobleckEncoder(use_snake=True, **SMALL)
    asked = OobleckEncoder(use_snake=True, checkpointing=True, **SMALL)
    asked.load_state_dict(plain.state_dict())
    x = torch.randn(1, 2, 64)
    for net in (plain, asked):
        net(x).square().sum().backward()
    wanted = dict(plain.named_parameters())
    for name, parameter in asked.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad)


def test_the_config_is_left_alone_and_its_defaults_are_those_of_the_signature():
    node = {"type": "oobleck", "config": {"channels": 4, "c_mults": [1, 2], "strides": [2, 2], "latent_dim": 6}}
    before = copy.deepcopy(node)
    encoder = build("encoder", node)
    assert node == before
    assert encoder(torch.randn(1, 2, 16)).shape == (1, 6, 4)


def test_frozen_by_its_sibling_key():
    node = {"type": "oobleck", "config": SMALL, "requires_grad": False}
    assert not any(parameter.requires_grad for parameter in build("encoder", node).parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strides": [2, 2, 2]}, "has 3 entries for 4 c_mults; give one per level"),
        ({"strides": [2, 0, 2, 2]}, r"strides\[1\]: expected at least 1, got 0"),
        ({"use_snakee": True}, "unknown key; did you mean 'use_snake'"),
        ({"channels": 12.5}, "expected a whole number"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build("encoder", {"type": "oobleck", "config": config})
