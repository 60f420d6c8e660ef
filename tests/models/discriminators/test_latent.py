"""Critics of latents learn to tell pairs apart and to fill in; shapes, batches of one, masks."""

import pytest
import torch

from stable_audio_tools.models.discriminators import LatentAudioCritic, LatentJEPA
from stable_audio_tools.models.discriminators.latent import draw_blocks


@pytest.mark.parametrize("dyt", [True, False])
def test_the_critic_learns_which_latents_belong_to_which_audio(dyt):
    torch.manual_seed(0)
    rates = {"seq_mask_rate": 0.1, "feature_mask_rate": 0.1, "latent_mask_rate": 0.0}
    critic = LatentAudioCritic(6, 4, transformer_dim=64, depth=2, dyt=dyt, **rates)
    optimizer = torch.optim.AdamW(critic.parameters(), 3e-3)
    audio = torch.randn(4, 6, 1).expand(-1, -1, 4)
    latents = audio[:, :4]
    losses = []
    for _ in range(100):
        loss = critic.loss(audio, latents, checkpointing=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_recomputing_changes_no_loss_and_text_adds_pairs():
    torch.manual_seed(0)
    critic = LatentAudioCritic(6, 4, text_dim=5, transformer_dim=64, depth=1)
    inputs = (torch.randn(3, 6, 8), torch.randn(3, 4, 8), torch.randn(3, 2, 5))
    losses = []
    for checkpointing in (True, False):
        torch.manual_seed(1)
        losses.append(critic.loss(*inputs, checkpointing=checkpointing))
    torch.testing.assert_close(*losses)
    scores, states = critic(*inputs, masking=False)
    assert scores.shape == (3, 1) and states.shape == (3, 8, 64)
    assert torch.equal(scores, critic(*inputs, masking=False)[0])
    assert critic.loss(*(part[:1] for part in inputs)) == 0


def test_prediction_of_masked_stretches_improves():
    torch.manual_seed(0)
    jepa = LatentJEPA(4, 64, 1, mask_rate=0.5, mask_block_size=4)
    optimizer = torch.optim.AdamW(jepa.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        latents = torch.randn(8, 4, 1).expand(-1, -1, 40).clone().requires_grad_()
        loss = jepa.loss(latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_blocks_cover_their_share_and_stay_inside():
    torch.manual_seed(0)
    mask = draw_blocks(50, 60, 8, 3)
    assert mask.shape == (50, 60) and mask.sum(1).min() >= 8 and mask.sum(1).max() <= 24
    assert not draw_blocks(2, 60, 8, 0).any()
