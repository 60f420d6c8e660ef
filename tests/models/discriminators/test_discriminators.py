"""Every discriminator: both sides of the game, gradients, names, and losses by hand."""

import pytest
import torch
from torch import nn

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.discriminators import (
    BigVGANDiscriminator,
    DACGANLoss,
    EncodecDiscriminator,
    HILDiscriminator,
    OobleckDiscriminator,
)
from stable_audio_tools.models.discriminators.losses import ADVERSARIAL

SMALL_CQT = {
    "cqtd_filters": 4,
    "cqtd_hop_lengths": [64, 32],
    "cqtd_n_octaves": [5, 4],
    "cqtd_bins_per_octaves": [12, 12],
    "cqtd_fmin": 200.0,
}
SMALL = {
    "encodec": (EncodecDiscriminator, {"filters": 4, "n_ffts": [128], "hop_lengths": [32], "win_lengths": [128]}),
    "oobleck": (OobleckDiscriminator, {}),
    "dac": (DACGANLoss, {"periods": [2], "rates": [2], "fft_sizes": [128]}),
    "big_vgan": (BigVGANDiscriminator, {"periods": [3], **SMALL_CQT}),
    "hil": (
        HILDiscriminator,
        {
            "filters": 4,
            "n_ffts": [128],
            "hop_lengths": [32],
            "win_lengths": [128],
            "taps": 32,
            "periods": [1, 2],
            "cutoff_freqs": [0, 0.25],
            "channels": [4, 6],
            "strides": [3, 1],
            "kernel_sizes": [5, 3],
        },
    ),
}


def make(tag, **extra):
    torch.manual_seed(0)
    config = {**SMALL[tag][1], **extra}
    runtime = {"in_channels": 1, "channels": 1, "sample_rate": 16000}
    return build("discriminator", {"type": tag, "config": config}, **runtime)


@pytest.fixture
def audio():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 1, 600, generator=generator).clamp(-1, 1), torch.randn(1, 1, 600, generator=generator)


@pytest.mark.parametrize("tag", SMALL)
def test_separate_sides_equal_the_joint_loss(tag, audio):
    critic, (reals, fakes) = make(tag), audio
    joint = critic.loss(reals, fakes)
    assert isinstance(critic, SMALL[tag][0])
    torch.testing.assert_close(critic.discriminator_loss(fakes, reals), joint.discriminator)
    torch.testing.assert_close(tuple(critic.generator_loss(fakes, reals)), tuple(joint[1:]))


@pytest.mark.parametrize("tag", SMALL)
def test_the_discriminator_turn_leaves_the_generator_alone(tag, audio):
    critic, (reals, fakes) = make(tag), audio
    fakes.requires_grad_()
    critic.discriminator_loss(fakes, reals).backward()
    assert fakes.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())
    critic.loss(reals, fakes).discriminator.backward()
    assert fakes.grad is None


@pytest.mark.parametrize("tag", SMALL)
def test_both_generator_terms_reach_the_generator(tag, audio):
    critic, (reals, fakes) = make(tag), audio
    for index in range(2):
        leaf = fakes.clone().requires_grad_()
        critic.generator_loss(leaf, reals)[index].backward()
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("tag", "loss_type"),
    [
        ("encodec", "hinge"),
        ("encodec", "rpgan"),
        ("dac", "lsgan"),
        ("big_vgan", "hinge"),
        ("oobleck", "hinge"),
        ("hil", "sigmoid_rpgan"),
    ],
)
def test_a_small_step_down_the_gradient_tells_real_from_fake(tag, loss_type, audio):
    critic, (reals, fakes) = make(tag, loss_type=loss_type).double(), (signal.double() for signal in audio)
    loss = critic.discriminator_loss(fakes, reals)
    loss.backward()
    with torch.no_grad():
        squares = sum(float(parameter.grad.square().sum()) for parameter in critic.parameters())
        for parameter in critic.parameters():
            parameter -= 1e-7 / squares * parameter.grad
        # To first order the loss falls by 1e-7.
        assert float(loss - critic.discriminator_loss(fakes, reals)) == pytest.approx(1e-7, rel=0.02)


@pytest.mark.parametrize("tag", ["encodec", "dac", "big_vgan", "hil"])
def test_recomputing_activations_changes_no_gradient(tag, audio):
    reals, fakes = audio
    gradients = []
    for checkpointing in (True, False):
        critic = make(tag, checkpointing=checkpointing)
        critic.discriminator_loss(fakes, reals).backward()
        gradients.append([parameter.grad for parameter in critic.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("tag", SMALL)
def test_other_names_of_weight_norm_load(tag):
    critic, other = make(tag), make(tag)
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): torch.randn_like(value)
        for name, value in critic.state_dict().items()
    }
    assert any("original0" in name for name in renamed)
    other.load_state_dict(renamed)
    first = next(name for name in renamed if name.endswith("original0"))
    torch.testing.assert_close(
        other.state_dict()[first.replace("parametrizations.weight.original0", "weight_g")], renamed[first]
    )


@pytest.mark.parametrize("tag", SMALL)
def test_meta_device(tag):
    with torch.device("meta"):
        critic = make(tag)
    assert all(parameter.is_meta for parameter in critic.parameters())
    assert set(critic.state_dict()) == set(make(tag).state_dict())


def test_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    by_hand = {
        "hinge": ((0 + 0.5) / 2 + (0 + 1.5) / 2, 0.75),
        "unit_hinge": ((0 + 0.5) / 2 + (0 + 0.5) / 2, (3 + 0.5) / 2),
        "lsgan": ((4 + 0.25) / 2 + (1 + 0.25) / 2, (9 + 0.25) / 2),
    }
    for name, (critic, generator) in by_hand.items():
        assert float(ADVERSARIAL[name].critic(real, fake)) == pytest.approx(critic)
        assert float(ADVERSARIAL[name].generator(real, fake)) == pytest.approx(generator)
    relativistic = ADVERSARIAL["rpgan"]
    shifted = relativistic.critic(real + 5, fake + 5)
    torch.testing.assert_close(relativistic.critic(real, fake), shifted)
    torch.testing.assert_close(relativistic.critic(real, fake), relativistic.generator(fake, real))


def test_relative_feature_distances_ignore_the_scale_of_features():
    critic = make("encodec", normalize_losses=True, activation="Identity")
    reals, fakes = torch.randn(1, 1, 1000), torch.randn(1, 1, 1000)
    with torch.no_grad():
        for module in critic.modules():
            if isinstance(module, nn.Conv2d):
                module.bias.zero_()
        once, thrice = (critic.loss(gain * reals, gain * fakes).feature_matching for gain in (100.0, 300.0))
    # The 1e-3 in the denominator is all that remembers the scale.
    torch.testing.assert_close(once, thrice, rtol=1e-3, atol=0)


def test_channels_may_grow():
    critic = make("encodec", filters_scale=2, max_filters=16)
    widths = [conv.conv.out_channels for conv in critic.discriminators.discriminators[0].convs]
    assert widths == [4, 8, 16, 16, 16]


def test_stereo(audio):
    stereo = torch.cat(audio, dim=1)
    for critic in (
        EncodecDiscriminator(filters=4, in_channels=2, n_ffts=[128], hop_lengths=[32], win_lengths=[128]),
        OobleckDiscriminator(in_channels=2),
        DACGANLoss(channels=2, sample_rate=16000, periods=[2], fft_sizes=[128]),
        BigVGANDiscriminator(16000, 2, periods=[2], **SMALL_CQT),
    ):
        assert all(torch.isfinite(value) for value in critic.loss(stereo, stereo * 0.5))
    with pytest.raises(ValueError, match="set in_channels to 2"):
        OobleckDiscriminator()(stereo)


@pytest.mark.parametrize(
    ("tag", "config", "message"),
    [
        ("encodec", {"n_ffts": [256, 128]}, "must have one length"),
        ("encodec", {"win_lengths": [256]}, r"longer than n_ffts\[0\]"),
        ("encodec", {"activation": "Leaky"}, "torch.nn has no 'Leaky'"),
        ("encodec", {"filter": 3}, "unknown key"),
        ("dac", {"fft_sizes": [126]}, "use 128"),
        ("dac", {"bands": [[0.5, 0.5]]}, "must be below"),
        ("dac", {"periods": [], "rates": [], "fft_sizes": []}, "are all empty; give at least one"),
        ("big_vgan", {"cqtd_hop_lengths": [100, 32]}, "use a multiple of 16"),
        ("big_vgan", {"cqtd_n_octaves": [5]}, "must have one length"),
        ("big_vgan", {"fmin": 100.0}, "both name one setting"),
    ],
)
def test_mistakes_are_explained(tag, config, message):
    with pytest.raises(ConfigError, match=message):
        make(tag, **config)
