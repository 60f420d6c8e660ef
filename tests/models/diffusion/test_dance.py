"""Dance Diffusion's U-Net: resampling, attention layouts, conditions, mistakes."""

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.diffusion.dance import (
    CubicDownsample,
    CubicUpsample,
    DAU1DCondWrapper,
    DiffusionAttnUnet1D,
    SelfAttention1d,
)

BASE = {"io_channels": 2, "depth": 3, "n_attn_layers": 1, "channels": [32, 32, 64], "strides": [2, 2]}
T = torch.tensor([0.2, 0.7])


def make(**config):
    torch.manual_seed(0)
    return DiffusionAttnUnet1D(**{**BASE, **config}).eval()


def audio(length=32, channels=2):
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(0))


def test_resampling_keeps_constants_and_slow_waves():
    down, up = CubicDownsample(), CubicUpsample()
    torch.testing.assert_close(down(torch.ones(1, 3, 16)), torch.ones(1, 3, 8))
    torch.testing.assert_close(up(torch.ones(1, 3, 8)), torch.ones(1, 3, 16))
    wave = torch.sin(torch.arange(128) * 0.1)[None, None]
    # Away from the reflected ends; a cubic kernel is good to a few thousandths at this frequency.
    torch.testing.assert_close(up(down(wave))[..., 8:-8], wave[..., 8:-8], atol=0.01, rtol=0)


def test_resampling_does_not_mix_channels():
    x = torch.zeros(1, 3, 16)
    x[:, 1] = torch.randn(16)
    assert CubicUpsample()(CubicDownsample()(x))[:, [0, 2]].abs().max() == 0


def test_attention_equals_the_written_out_softmax():
    torch.manual_seed(0)
    layer = SelfAttention1d(8, 2, untransposed=False)
    x = torch.randn(3, 8, 5)
    q, k, v = layer.qkv_proj(layer.norm(x)).view(3, 6, 4, 5).transpose(2, 3).chunk(3, dim=1)
    mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    torch.testing.assert_close(layer(x), x + layer.out_proj(mixed.transpose(2, 3).reshape(3, 8, 5)))
    layer.untransposed = True
    torch.testing.assert_close(layer(x), x + layer.out_proj(mixed.reshape(3, 8, 5)))


def test_only_the_right_layout_follows_a_permutation_of_time():
    torch.manual_seed(0)
    x, order = torch.randn(1, 8, 5), torch.tensor([3, 0, 4, 1, 2])
    for untransposed in (False, True):
        layer = SelfAttention1d(8, 2, untransposed)
        assert torch.allclose(layer(x[..., order]), layer(x)[..., order], atol=1e-5) is not untransposed


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"use_snake": True},
        {"conv_bias": False},
        {"kernel_size": 3},
        {"n_attn_layers": 0},
        {"learned_resample": True, "strides": [3, 4]},
        {"strides": [1, 2]},
        {"untransposed_attention": True},
        {"depth": 1},
    ],
)
def test_options_run_forward_and_backward(option):
    net = make(**option)
    out = net(audio(48), T)
    assert out.shape == (2, 2, 48)
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_condition_is_stretched_and_matters():
    net = make(cond_dim=3)
    condition = audio(8, 3)
    out = net(audio(), T, cond=condition)
    assert out.shape == (2, 2, 32)
    assert not torch.allclose(net(audio(), T, cond=condition + 1), out)
    with pytest.raises(ValueError, match="condition has 0 channels, cond_dim is 3"):
        net(audio(), T)
    with pytest.raises(ValueError, match="condition has 3 channels, cond_dim is 0"):
        make()(audio(), T, cond=condition)


def test_noise_on_the_condition():
    net = make(cond_dim=3, cond_noise_aug=True)
    condition = audio(32, 3)
    quiet = [net(audio(), T, cond=condition, cond_aug_scale=0.0) for _ in range(2)]
    torch.testing.assert_close(*quiet)
    torch.manual_seed(1)
    first = net(audio(), T, cond=condition)
    torch.manual_seed(1)
    # Each call draws the next point of a Sobol sequence.
    assert not torch.allclose(net(audio(), T, cond=condition), first)
    levels = net._draw_noise_levels(256, None)
    assert levels.min() >= 0 and levels.max() <= 1 and abs(float(levels.mean()) - 0.5) < 0.02


@pytest.mark.parametrize(("length", "advice"), [(33, "pad to 36"), (8, "pad to 12")])
def test_lengths_are_checked(length, advice):
    with pytest.raises(ValueError, match=advice):
        make()(audio(length), T)


def test_shortest_length_runs():
    assert make()(audio(12), T).shape[-1] == 12


@pytest.mark.parametrize("kind", ["unconditional", "diffusion", "diffusion_decoder"])
def test_registered_backbones(kind):
    config = BASE if kind == "unconditional" else {**BASE, "cond_dim": 3}
    options = {} if kind == "unconditional" else {"input_concat_cond": audio(8, 3)}
    torch.manual_seed(0)
    model = build(kind, {"type": "DAU1d", "config": config})
    assert isinstance(model, DiffusionAttnUnet1D if kind == "unconditional" else DAU1DCondWrapper)
    with torch.device("meta"):
        blank = build(kind, {"type": "DAU1d", "config": {**config, "cond_noise_aug": bool(options)}})
    assert blank.state_dict().keys() == model.state_dict().keys()
    assert model(audio(), T, **options).shape == (2, 2, 32)
    half = model.bfloat16()(audio(), T, **options)
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()


def test_initial_scale_of_the_wrapper_is_a_quarter():
    torch.manual_seed(0)
    wrapped = DAU1DCondWrapper(**BASE).model.state_dict()
    torch.manual_seed(0)
    plain = DiffusionAttnUnet1D(**BASE).state_dict()
    name = "net.0.main.1.weight"  # a norm, 1 before any scaling
    assert float(plain[name][0]) == 0.5 and float(wrapped[name][0]) == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": [32, 32]}, "give one for each level"),
        ({"strides": [2]}, "give 2"),
        ({"strides": [2, 4]}, "learned_resample: true"),
        ({"cond_noise_aug": True}, "needs cond_dim"),
        ({"channels": [32, 32, 48]}, r"channels\[2\]: is 48; .* use 64"),
        ({"kernel_size": 4}, "use 5"),
        ({"attn_layers": 4}, "unknown key"),
    ],
)
def test_mistakes_are_explained(change, message):
    with pytest.raises(ConfigError, match=message):
        build("unconditional", {"type": "DAU1d", "config": {**BASE, **change}})
