import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders.seanet import SEANetDecoder, SEANetEncoder

SIZES = {"channels": 2, "dimension": 8, "n_filters": 4}
VARIANTS = {
    "default": {},
    "causal": {"causal": True},
    "plain-skip": {"true_skip": True, "lstm": 0},
    "group-norm": {"norm": "time_group_norm"},
    "no-norm": {"norm": "none", "n_residual_layers": 2, "dilation_base": 3},
    "unnormalised": {"norm": "time_layer_norm"},
    "spectral": {"norm": "spectral_norm"},
    "looks-ahead": {"causal": True, "trim_right_ratio": 0.5},
    "other-activations": {"activation": "ReLU", "activation_params": {}, "final_activation": "Tanh"},
    "other-kernels": {
        "compress": 1,
        "pad_mode": "replicate",
        "kernel_size": 5,
        "last_kernel_size": 3,
        "residual_kernel_size": 5,
    },
}
DECODER_ONLY = ("trim_right_ratio", "final_activation")


def encoder_options(options):
    return {key: value for key, value in options.items() if key not in DECODER_ONLY}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("length", [240, 241, 100, 5])
def test_equals_encodec(options, length):
    modules = pytest.importorskip("encodec.modules")
    torch.manual_seed(0)
    ours = SEANetEncoder(**SIZES, ratios=[2, 3, 4], **encoder_options(options)).eval()
    theirs = modules.SEANetEncoder(**SIZES, ratios=[4, 3, 2], **encoder_options(options)).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: encodec's names
    x = torch.randn(2, 2, length)
    with torch.no_grad():
        latents = ours(x)
        # Untrained spectral norms make values of 1e8, of which float32 keeps seven digits.
        torch.testing.assert_close(latents, theirs(x), rtol=1e-4, atol=1e-5)
    assert latents.shape[-1] == -(-length // 24)

    decoder = SEANetDecoder(**SIZES, ratios=[4, 3, 2], **options).eval()
    other = modules.SEANetDecoder(**SIZES, ratios=[4, 3, 2], **options).eval()
    other.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        audio = decoder(latents)
        torch.testing.assert_close(audio, other(latents), rtol=1e-4, atol=1e-5)
    assert audio.shape[-1] == latents.shape[-1] * 24


def test_training_gives_the_same_gradients_as_encodec():
    modules = pytest.importorskip("encodec.modules")
    ours = SEANetEncoder(**SIZES, ratios=[2, 2])
    theirs = modules.SEANetEncoder(**SIZES, ratios=[2, 2])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, 32)
    for net in (ours, theirs):
        net(x).square().sum().backward()
    wanted = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        torch.testing.assert_close(mine.grad, wanted[name].grad)


def reach(network, x, frame):
    """First and last input position that an output frame depends on."""
    x = x.clone().requires_grad_()
    network(x)[..., frame].abs().sum().backward()
    touched = x.grad.abs().sum((0, 1)).nonzero().flatten()
    return touched.min().item(), touched.max().item()


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_causal_encoder_sees_no_later_sample(pad_mode):
    torch.manual_seed(0)
    encoder = SEANetEncoder(**SIZES, ratios=[2, 3], causal=True, pad_mode=pad_mode).eval()
    x = torch.randn(1, 2, 240)
    # A frame ends with its last sample; reflection at the start of the clip looks ahead there, and only there.
    for frame in range(0 if pad_mode == "constant" else 10, 40):
        assert reach(encoder, x, frame)[1] <= 6 * frame + 5
    assert reach(encoder, x, 20)[1] > 6 * 19 + 5  # and it does see its own samples


def test_causal_decoder_sees_no_later_frame():
    torch.manual_seed(0)
    decoder = SEANetDecoder(**SIZES, ratios=[3, 2], causal=True, pad_mode="constant").eval()
    z = torch.randn(1, 8, 30)
    for sample in range(0, 180, 7):
        assert reach(decoder, z, sample)[1] <= sample // 6


def test_other_networks_do_see_later_samples():
    torch.manual_seed(0)
    encoder = SEANetEncoder(**SIZES, ratios=[2, 3]).eval()
    assert reach(encoder, torch.randn(1, 2, 240), 20)[1] > 6 * 20 + 5


def test_layer_norm_is_over_channels():
    encoder = SEANetEncoder(**SIZES, ratios=[2], norm="layer_norm", lstm=0).eval()
    assert "model.0.conv.norm.weight" in encoder.state_dict()
    first = encoder.model[0](torch.randn(1, 2, 16))
    torch.testing.assert_close(first.mean(1), torch.zeros(1, 16), atol=1e-6, rtol=0)


def test_the_order_of_ratios_in_a_config_is_from_audio_to_latents():
    node = {"type": "seanet", "config": {**SIZES, "ratios": [2, 5], "lstm": 0}}
    encoder = build("encoder", node)
    assert [layer.stride for layer in encoder.model if hasattr(layer, "stride")] == [1, 2, 5, 1]
    assert node["config"]["ratios"] == [2, 5]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "Elu"}, "torch.nn has no activation 'Elu'"),
        ({"final_activation": "functional"}, "torch.nn has no activation 'functional'"),
        ({"causal": True, "norm": "time_group_norm"}, "time_group_norm takes statistics over all time"),
        ({"trim_right_ratio": 0.5}, "has a meaning only where causal is true"),
        ({"ratios": []}, "at least 1 entries"),
        ({"n_filter": 3}, "did you mean 'n_filters'"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build("decoder", {"type": "seanet", "config": config})
