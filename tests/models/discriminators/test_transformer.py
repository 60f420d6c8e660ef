"""Transformer discriminators over every kind of bank: losses, gradients, the noise of a winning critic, messages."""

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.discriminators import HILDiscriminator, MultiTransformerDiscriminator
from stable_audio_tools.models.discriminators.transformer import get_transformer_dim

ONE = {"depths": [1], "strides": [2], "sliding_window_widths": [1], "enabled": True}
KINDS = {
    "patched": {"patched_kwargs": {**ONE, "patch_sizes": [7], "dyt": True}},
    "spectra": {"patched_kwargs": {"enabled": False}, "stft_kwargs": {**ONE, "n_ffts": [32]}},
    "wavelets": {"patched_kwargs": {"enabled": False}, "mfb_kwargs": {**ONE, "levels": [4], "differential": False}},
    "filter_banks": {
        "patched_kwargs": {"enabled": False},
        "mfb_kwargs": {
            "enabled": True,
            "use_HIL": True,
            "periods": [1, 2],
            "cutoff_freqs": [0, 0.25],
            "taps": 32,
            "channels": [4],
            "strides": [3],
            "kernel_sizes": [5],
        },
    },
    "chroma": {
        "patched_kwargs": {"enabled": False},
        "chroma_kwargs": {**ONE, "centres": [5.0], "octwidths": [1.5], "checkpointing": True},
    },
}


def make(**config):
    torch.manual_seed(0)
    node = {"type": "transformer", "config": {"normalize_losses": True, **config}}
    critic = build("discriminator", node, in_channels=2, channels=2, sample_rate=16000)
    assert isinstance(critic, MultiTransformerDiscriminator)
    return critic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_type", ["hinge", "rpgan", "sigmoid_rpgan"])
def test_each_kind_judges_and_teaches_both_sides(kind, loss_type):
    critic = make(loss_type=loss_type, **KINDS[kind])
    reals, fakes = torch.randn(2, 2, 6000), torch.randn(2, 2, 6000, requires_grad=True)
    scores, features = critic(reals)
    assert len(scores) == len(features) > 0 and all(maps for maps in features)
    critic.discriminator_loss(fakes, reals).backward()
    assert fakes.grad is None and all(p.grad is not None for p in critic.parameters() if p.requires_grad)
    losses = critic.generator_loss(fakes, reals)
    (losses.adversarial + losses.feature_matching).backward()
    assert fakes.grad is not None and torch.isfinite(fakes.grad).all() and fakes.grad.abs().max() > 0


def judged_frames(critic, audio):
    """What the first discriminator sees."""
    return critic(audio)[1][0][0]


def test_a_winning_critic_sees_noise_in_training_alone():
    critic, audio = make(**KINDS["patched"]), torch.randn(1, 2, 500)
    assert torch.equal(judged_frames(critic, audio), judged_frames(critic, audio))
    critic.last_disc_loss.fill_(0.01)
    assert not torch.equal(judged_frames(critic, audio), judged_frames(critic, audio))
    critic.eval()
    assert torch.equal(judged_frames(critic, audio), judged_frames(critic, audio))
    critic.discriminator_loss(audio, audio)
    assert float(critic.last_disc_loss) > 0.01 and "last_disc_loss" not in critic.state_dict()


@pytest.mark.parametrize("channels", [1, 2])
def test_masking_noise_reaches_what_is_judged(channels):
    config = {
        "filters": 4,
        "n_ffts": [64],
        "hop_lengths": [16],
        "win_lengths": [64],
        "periods": [1],
        "cutoff_freqs": [0],
    }
    critic = HILDiscriminator(add_noise=True, sample_rate=16000, in_channels=channels, n_chroma=12, **config)
    audio = torch.randn(1, channels, 6000)
    scores, _ = critic(audio)
    assert len(scores) == 3 and not torch.equal(scores[1], critic(audio)[0][1])
    assert not any("noise" in name for name in critic.state_dict())


def test_widths_are_whole_heads():
    assert [get_transformer_dim(channels) for channels in (1, 100, 300, 10_000)] == [192, 192, 256, 512]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patched_kwargs": {"enabled": False}}, "no kind of discriminator is enabled"),
        ({"patched_kwargs": {"patch_sizes": [7]}}, "patched_kwargs.depths: has 3 entries for 1 patch_sizes"),
        ({"stft_kwargs": {"size": 2}}, "stft_kwargs.size"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        make(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"taps": 33}, "taps: is 33, and must be even; use 34"),
        ({"periods": [1, 2]}, "cutoff_freqs: has 6 entries for 2 periods"),
        ({"periods": [2], "cutoff_freqs": [0]}, r"cutoff_freqs\[0\]: is 0"),
        ({"strides": [1]}, "strides: has 1 entries for 5 channels"),
    ],
)
def test_mistakes_of_filter_banks_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build("discriminator", {"type": "hil", "config": {"filters": 4, **config}}, in_channels=1)
