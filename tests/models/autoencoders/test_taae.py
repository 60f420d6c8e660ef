import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders import TAAEDecoder, TAAEEncoder
from stable_audio_tools.models.transformer import TransformerBlock

SMALL = {"channels": 16, "c_mults": [1, 2], "strides": [2, 4], "transformer_depths": [1, 2], "latent_dim": 6}


def wake(network):
    """Layer scales start near zero; at one, attention has a visible effect."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_scale.scale"):
                parameter.fill_(1.0)
    return network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_snake": True, "use_dilated_conv": True},
        {"conformer": True, "layer_scale": False},
        {"strides": [1, 4]},
        {"sliding_window": [-1, -1]},
        {"sliding_window": None},
    ],
    ids=str,
)
def test_there_and_back_with_gradients(options):
    settings = {**SMALL, **options}
    ratio = settings["strides"][0] * settings["strides"][1]
    encoder, decoder = TAAEEncoder(**settings), TAAEDecoder(**settings)
    latents = encoder(torch.randn(2, 2, ratio * 12))
    assert latents.shape == (2, 6, 12)
    audio = decoder(latents)
    assert audio.shape == (2, 2, ratio * 12)
    audio.square().sum().backward()
    assert all(p.grad is not None for p in (*encoder.parameters(), *decoder.parameters()) if p.requires_grad)


def test_names_of_published_weights():
    names = set(TAAEEncoder(use_snake=True, **SMALL).state_dict())
    block = "layers.1.layers.2.1"
    assert {
        "layers.1.layers.0.alpha",
        "layers.1.layers.1.weight_g",
        f"{block}.pre_norm.gamma",
        f"{block}.pre_norm.beta",
        f"{block}.self_attn.to_qkv.weight",
        f"{block}.self_attn.q_norm.weight",
        f"{block}.self_attn_scale.scale",
        f"{block}.ff.ff.0.proj.weight",
        f"{block}.ff.ff.2.bias",
        f"{block}.ff_scale.scale",
        f"{block}.rope.inv_freq",
    } <= names


def reach(network, x, frame):
    x = x.clone().requires_grad_()
    network(x)[..., frame].square().sum().backward()
    touched = x.grad.abs().sum((0, 1)).nonzero().flatten()
    return touched.min().item(), touched.max().item()


def test_attention_reaches_no_further_than_its_window():
    """Three layers of one window, between convolutions of kernel 7 and 3: 3 * window + 4 either way."""
    torch.manual_seed(0)
    sizes = {"channels": 16, "c_mults": [1], "strides": [1], "transformer_depths": [3], "latent_dim": 6}
    x = torch.randn(1, 2, 600)
    narrow = wake(TAAEEncoder(**sizes, sliding_window=[5, 9])).eval()
    assert reach(narrow, x, 300) == (300 - 3 * 5 - 4, 300 + 3 * 9 + 4)
    unlimited = wake(TAAEEncoder(**sizes, sliding_window=[-1, -1])).eval()
    assert reach(unlimited, x, 300) == (0, 599)


def test_recomputes_in_training_and_on_request_only():
    def passes(network, training):
        calls = []
        block = next(m for m in network.modules() if isinstance(m, TransformerBlock))
        handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
        network.train(training)(torch.randn(1, 2, 64)).sum().backward()
        handle.remove()
        return len(calls)

    asked, plain = TAAEEncoder(checkpointing=True, **SMALL), TAAEEncoder(**SMALL)
    assert (passes(asked, True), passes(asked, False), passes(plain, True)) == (2, 1, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strides": [2]}, "strides: has 1 entries for 4 c_mults"),
        ({"transformer_depths": [1, 1]}, "transformer_depths: has 2 entries for 4 c_mults"),
        ({"channels": 96}, r"c_mults\[1\]: results in a width of 192 with channels 96.*such as 256"),
        ({"sliding_window": [3]}, "sliding_window: expected at least 2 entries"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build("encoder", {"type": "taae", "config": config})
