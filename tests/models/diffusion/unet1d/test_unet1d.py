"""The 1-D U-Nets: every option builds and runs, and means what it says."""

import pytest
import torch
from torch.nn import functional as F

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.diffusion.unet1d.attention import SequenceAttention
from stable_audio_tools.models.diffusion.unet1d.blocks import SameConv1d, SameConvTranspose1d
from stable_audio_tools.models.diffusion.unet1d.unet import SpectralChannels, UNet1d
from stable_audio_tools.models.diffusion.unet1d.wrappers import (
    UNet1DCondWrapper,
    UNet1DUncondWrapper,
    UNetCFG1d,
    UNetCFG1DWrapper,
)

BASE = {
    "in_channels": 2,
    "channels": 16,
    "multipliers": [1, 2, 2],
    "factors": [2, 3],
    "num_blocks": [1, 2],
    "attentions": [0, 1, 1],
    "resnet_groups": 4,
    "attention_heads": 2,
    "attention_features": 8,
    "attention_multiplier": 2,
}
GUIDED = {**BASE, "context_embedding_features": 8, "context_embedding_max_length": 6}
T = torch.tensor([0.3, 0.8])


def audio(length=24, channels=2, key=0):
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(key))


def make(net, **config):
    torch.manual_seed(0)
    return net(**config).eval()


# ------------------------------------------------------------------ blocks


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [12, 13, 17])
def test_convolution_gives_a_frame_per_started_stride(stride, length):
    conv = SameConv1d(1, 1, 2 * stride + 1, stride=stride)
    assert conv(torch.randn(1, 1, length)).shape[-1] == -(-length // stride)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_transposed_convolution_multiplies_the_length(factor):
    assert SameConvTranspose1d(1, 1, 2 * factor, stride=factor)(torch.randn(1, 1, 7)).shape[-1] == 7 * factor


def test_same_convolution_is_torchs_for_odd_kernels():
    conv = SameConv1d(2, 3, 5, dilation=2)
    x = torch.randn(1, 2, 20)
    torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight, conv.bias, padding="same", dilation=2))


@pytest.mark.parametrize("use_complex", [False, True])
def test_spectral_channels_invert(use_complex):
    spectral = SpectralChannels(63, 16, None, use_complex)
    x = audio(320)
    channels = spectral.encode(x)
    assert channels.shape == (2, 2 * 2 * 32, 320 // 16)
    # The last half window overlaps nothing; float32 transforms are good to 1e-5.
    torch.testing.assert_close(spectral.decode(channels, 320)[..., :-32], x[..., :-32], atol=1e-4, rtol=0)


def test_attention_equals_the_written_out_softmax():
    attention = SequenceAttention(8, 6, 2, 4)
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    q = attention.to_q(attention.norm(x)).view(2, 5, 2, 4).transpose(1, 2)
    k, v = (p.view(2, 3, 2, 4).transpose(1, 2) for p in attention.to_kv(attention.norm_context(context)).chunk(2, -1))
    weights = (q @ k.transpose(-1, -2) * 4**-0.5).softmax(-1)
    want = attention.attention.to_out((weights @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x, context), want)


@pytest.mark.parametrize("exclude", [False, True])
def test_masked_tokens_say_nothing(exclude):
    attention = SequenceAttention(8, 6, 2, 4, exclude)
    x, context = torch.randn(1, 5, 8), torch.randn(1, 4, 6)
    keep = torch.tensor([[1, 1, 0, 0]])
    other = torch.cat([context[:, :2], torch.randn(1, 2, 6)], dim=1)
    torch.testing.assert_close(attention(x, context, keep), attention(x, other, keep))
    alone = attention(x, context[:, :2])
    # Only the flag takes away the share of the softmax that zero scores have.
    assert torch.allclose(attention(x, context, keep), alone, atol=1e-6) is exclude


def test_a_condition_of_padding_alone_is_finite():
    for exclude in (False, True):
        attention = SequenceAttention(8, 6, 2, 4, exclude)
        out = attention(torch.randn(1, 5, 8), torch.randn(1, 4, 6), torch.zeros(1, 4))
        torch.testing.assert_close(out, attention.attention.to_out.bias.expand(1, 5, -1))


# ------------------------------------------------------------------ the net


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"use_nearest_upsample": True},
        {"use_skip_scale": False},
        {"use_snake": True},
        {"patch_size": 4},
        {"kernel_multiplier_downsample": 4},
        {"use_context_time": False},
        {"attention_features": None},
        {"attention_heads": None},
        {"out_channels": 3},
        {"attentions": [1, 1]},
        {"factors": [1, 2]},
    ],
)
def test_options_run_forward_and_backward(option):
    config = {**BASE, **option}
    net = make(UNet1d, **config)
    out = net(audio(48), T)
    assert out.shape == (2, option.get("out_channels", 2), 48)
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_options_change_the_output():
    base = make(UNet1d, **BASE)(audio(), T)
    for option in ({"use_skip_scale": False}, {"use_snake": True}, {"use_nearest_upsample": True}):
        assert not torch.allclose(make(UNet1d, **BASE, **option)(audio(), T), base)


def test_time_and_features_modulate():
    net = make(UNet1d, **BASE, context_features=5)
    features = torch.randn(2, 5)
    out = net(audio(), T, features=features)
    assert not torch.allclose(net(audio(), T + 0.1, features=features), out)
    assert not torch.allclose(net(audio(), T, features=features + 1), out)
    with pytest.raises(ValueError, match="global_cond_ids"):
        net(audio(), T)
    with pytest.raises(ValueError, match="noise level"):
        net(audio(), features=features)


def test_items_of_a_batch_are_independent():
    net = make(UNet1d, **BASE)
    x = audio()
    torch.testing.assert_close(net(x, T)[1:], net(x[1:], T[1:]), atol=1e-5, rtol=1e-5)


def test_context_channels_are_stretched_to_their_level():
    net = make(UNet1d, **BASE, context_channels=[3, 0, 4])
    first, last = audio(24, 3, 1), audio(4, 4, 2)  # level 2 has 24 / (2 * 3) frames
    out = net(audio(), T, channels_list=[first, last])
    repeated = net(audio(), T, channels_list=[first, last.repeat_interleave(6, dim=-1)])
    torch.testing.assert_close(out, repeated)
    assert not torch.allclose(net(audio(), T, channels_list=[first, last + 1]), out)
    with pytest.raises(ValueError, match="2 levels with context, 1 tensors"):
        net(audio(), T, channels_list=[first])
    with pytest.raises(ValueError, match="level 0 has 4 channels, context_channels 3"):
        net(audio(), T, channels_list=[last, first])


@pytest.mark.parametrize("context", [False, True])
def test_spectral_net_keeps_the_waveform_length(context):
    options = {"use_stft": True, "stft_num_fft": 31, "stft_hop_length": 8, "use_stft_context": context}
    net = make(UNet1d, **BASE, **options, context_channels=[1])
    waves, given = audio(480), audio(480 if context else 60, 1)
    assert net(waves, T, channels_list=[given]).shape == waves.shape
    fixed = make(UNet1d, **BASE, **options, context_channels=[1], stft_length=400)
    assert fixed(waves, T, channels_list=[given]).shape[-1] == 400


def test_lengths_that_do_not_divide_are_refused():
    net = make(UNet1d, **BASE)
    with pytest.raises(ValueError, match=r"25 frames: the length must be a multiple of .* = 6; pad to 30"):
        net(audio(25), T)


# ------------------------------------------------------------------ guidance


@pytest.fixture
def condition():
    generator = torch.Generator().manual_seed(3)
    return {
        "embedding": torch.randn(2, 5, 8, generator=generator),
        "embedding_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
    }


@pytest.mark.parametrize("xattn_time", [False, True])
@pytest.mark.parametrize("negative", [False, True])
def test_one_batch_or_two_passes_give_the_same(condition, xattn_time, negative):
    net = make(UNetCFG1d, **GUIDED, use_xattn_time=xattn_time)
    if negative:
        condition |= {"negative_embedding": torch.randn(2, 5, 8), "negative_embedding_mask": torch.ones(2, 5)}
    once, twice = (net(audio(), T, **condition, embedding_scale=3.0, batch_cfg=batch) for batch in (True, False))
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-4)


def test_guidance_is_linear_in_its_scale(condition):
    net = make(UNetCFG1d, **GUIDED)
    one, two, four = (net(audio(), T, **condition, embedding_scale=scale) for scale in (1.0, 2.0, 4.0))
    torch.testing.assert_close(four, one + 3 * (two - one), atol=1e-4, rtol=1e-4)
    unconditional = net(audio(), T, **condition, embedding_scale=0.0)
    null = net.fixed_embedding(condition["embedding"])
    torch.testing.assert_close(unconditional, net(audio(), T, **{**condition, "embedding": null}), atol=1e-5, rtol=1e-4)


def test_rescaling_restores_the_deviation(condition):
    net = make(UNetCFG1d, **{**GUIDED, "in_channels": 6})
    x = audio(channels=6)
    plain = net(x, T, **condition)
    full = net(x, T, **condition, embedding_scale=5.0, rescale_cfg=True, scale_phi=1.0)
    torch.testing.assert_close(full.std(dim=1), plain.std(dim=1), atol=1e-5, rtol=1e-3)


def test_a_negative_condition_equal_to_the_condition_leaves_nothing_to_guide(condition):
    net = make(UNetCFG1d, **GUIDED)
    same = {"negative_embedding": condition["embedding"]}
    torch.testing.assert_close(
        net(audio(), T, **condition, **same, embedding_scale=7.0), net(audio(), T, **condition), atol=1e-4, rtol=1e-4
    )


def test_dropped_conditions_become_the_null_sequence(condition):
    net = make(UNetCFG1d, **GUIDED)
    dropped = net(audio(), T, **condition, embedding_mask_proba=1.0)
    torch.testing.assert_close(dropped, net(audio(), T, **condition, embedding_scale=0.0), atol=1e-5, rtol=1e-4)


def test_wrong_conditions_are_explained(condition):
    net = make(UNetCFG1d, **GUIDED)
    with pytest.raises(ValueError, match="cross_attention_cond_ids"):
        net(audio(), T)
    with pytest.raises(ValueError, match="9 tokens: the model knows 6"):
        net(audio(), T, embedding=torch.randn(2, 9, 8))
    with pytest.raises(ValueError, match="negative condition of 4 tokens for a condition of 5"):
        net(audio(), T, **condition, embedding_scale=2.0, negative_embedding=torch.randn(2, 4, 8))


# ------------------------------------------------------------------ backbones


@pytest.mark.parametrize(
    ("kind", "tag", "config", "expected"),
    [
        ("diffusion", "adp_cfg_1d", GUIDED, UNetCFG1DWrapper),
        ("diffusion", "adp_1d", BASE, UNet1DCondWrapper),
        ("diffusion_decoder", "adp_1d", BASE, UNet1DCondWrapper),
        ("unconditional", "adp_uncond_1d", BASE, UNet1DUncondWrapper),
    ],
)
def test_registered_backbones(kind, tag, config, expected):
    torch.manual_seed(0)
    model = build(kind, {"type": tag, "config": config})
    assert isinstance(model, expected) and model.io_channels == 2
    with torch.device("meta"):
        blank = build(kind, {"type": tag, "config": config})
    assert {name: value.shape for name, value in blank.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    options = {"cross_attn_cond": torch.randn(2, 5, 8)} if tag == "adp_cfg_1d" else {}
    assert model(audio(), T, **options).shape == (2, 2, 24)
    half = model.bfloat16()(audio(), T, **options)
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()


def test_parameters_start_at_half():
    torch.manual_seed(0)
    wrapped = UNet1DUncondWrapper(**BASE).model.state_dict()
    torch.manual_seed(0)
    plain = UNet1d(**BASE).state_dict()
    assert wrapped.keys() == plain.keys()
    for name, value in wrapped.items():
        torch.testing.assert_close(value, 0.5 * plain[name])


def test_guidance_outside_its_interval_is_off():
    torch.manual_seed(0)
    model = UNetCFG1DWrapper(**GUIDED).eval()
    given = {"cross_attn_cond": torch.randn(2, 5, 8)}
    plain, guided = model(audio(), T, **given), model(audio(), T, **given, cfg_scale=5.0)
    # t = 0.3 is a noise level of 0.454 for v
    torch.testing.assert_close(model(audio(), T, **given, cfg_scale=5.0, cfg_interval=(0.6, 1.0)), plain)
    torch.testing.assert_close(model(audio(), T, **given, cfg_scale=5.0, cfg_interval=(0.4, 0.5)), guided)


def test_concatenated_conditions_reach_every_level():
    torch.manual_seed(0)
    model = UNet1DCondWrapper(**BASE, context_channels=[3, 0, 4]).eval()
    given = torch.randn(2, 7, 24)
    out = model(audio(), T, input_concat_cond=given)
    for channel in (0, 6):
        changed = given.clone()
        changed[:, channel] += 1
        assert not torch.allclose(model(audio(), T, input_concat_cond=changed), out)
    with pytest.raises(ValueError, match=r"gave 5 channels, context_channels \[3, 4\] takes 7"):
        model(audio(), T, input_concat_cond=given[:, :5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": [2]}, "give one less than multipliers, 2"),
        ({"attentions": [1]}, "the last for the middle"),
        ({"resnet_groups": 5}, "no multiple of resnet_groups"),
        ({"patch_size": 3}, "must divide"),
        ({"channels": 8}, "asks for attention at 16 channels"),
        ({"attention_heads": None, "attention_features": None}, "give attention_heads or attention_features"),
        ({"attention_multiplier": None}, "attention_multiplier: missing"),
        ({"context_channels": [0, 3]}, "context_channels.*use 4"),
        ({"context_channels": [1, 0, 0, 4]}, "give no more"),
        ({"use_stft": True}, "stft_num_fft: missing"),
        ({"stft_hop_length": 4}, "has no effect without use_stft"),
        ({"kernel_multiplier_downsample": 3}, "kernel_multiplier_downsample"),
        ({"use_nearest": True}, "unknown key; did you mean 'use_nearest_upsample'"),
    ],
)
def test_mistakes_are_explained(change, message):
    with pytest.raises(ConfigError, match=message):
        build("unconditional", {"type": "adp_uncond_1d", "config": {**BASE, **change}})
