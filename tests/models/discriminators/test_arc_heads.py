"""Heads of adversarial distillation: shapes, both games, fresh weights, and every scale."""

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models import arc

HEADS = {
    "conv": {"hidden_dim": 8, "anti_aliased": True, "soft_clip_scale": 2.0},
    "convnext": {"channels": 4, "c_mults": [1, 2], "strides": [2, 2], "num_blocks": [1, 1], "conv_args": {"glu": True}},
    "dilated_conv": {"hidden_dim": 8, "dilations": [1, 2]},
    "transformer": {"hidden_dim": 16, "depth": 1, "dim_heads": 8, "differential": False},
    "multi_scale": {
        "dim_heads": 8,
        "heads": [
            {"stride": 1, "hidden_dim": 16, "depth": 1, "sliding_window": [2, 2]},
            {"name": "far", "stride": 4, "hidden_dim": 16, "depth": 1, "sliding_window": [1, 1], "differential": False},
        ],
    },
}


def make(tag):
    return build("discriminator_head", {"type": tag, "config": HEADS[tag]}, channels=12, in_channels=12)


@pytest.mark.parametrize("tag", HEADS)
@pytest.mark.parametrize("game", ["lsgan", "relativistic"])
def test_every_head_plays_both_games(tag, game):
    torch.manual_seed(0)
    head = make(tag)
    head.loss_type = game
    with torch.no_grad():  # branches that start at zero see nothing
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    real, fake = torch.randn(2, 12, 64), torch.randn(2, 12, 64, requires_grad=True)
    losses = head.loss(real, fake)
    assert set(losses) == {"loss_dis", "loss_adv"}
    (losses["loss_dis"] + losses["loss_adv"]).backward()
    assert fake.grad is not None and fake.grad.abs().max() > 0
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("tag", HEADS)
def test_resetting_draws_all_weights_again(tag):
    head = make(tag)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(7.0)
    head.reset_parameters()
    assert not any((parameter == 7.0).any() for parameter in head.parameters())


def test_scales_have_names_and_lengths():
    head = make("multi_scale")
    assert isinstance(head, arc.MultiScaleTransformerDiscriminator) and head.head_names == ["scale_0", "far"]
    assert [score.shape for score in head(torch.randn(2, 12, 32))] == [(2, 1, 32), (2, 1, 8)]
    assert arc.MultiScaleTransformerDiscriminator(12).head_names == ["local", "mid", "global"]


def test_anti_aliasing_scores_the_shifted_states_too():
    head, x = make("conv"), torch.randn(2, 12, 64)
    scores = head(x)
    assert len(scores) == 4
    torch.testing.assert_close(scores[2:], head(x.roll(1, -1))[:2])


def test_latents_too_short_for_the_strided_head_are_named():
    with pytest.raises(UserError, match="stretches of 64 frames, and these latents have 40"):
        make("conv")(torch.randn(1, 12, 40))
