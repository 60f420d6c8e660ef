"""Continuous bottlenecks against closed forms."""

import pytest
import torch
from torch import nn

from stable_audio_tools.models.bottleneck import (
    L2Bottleneck,
    SoftNormBottleneck,
    TanhBottleneck,
    VAEBottleneck,
    WassersteinBottleneck,
    compute_mmd,
    vae_sample,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_vae_divergence_is_twice_that_of_torch_and_not_per_channel() -> None:
    mean, scale = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    std = nn.functional.softplus(scale) + 1e-4
    told = torch.distributions.Normal(mean, std)
    exact = torch.distributions.kl_divergence(told, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(vae_sample(mean, scale).kl, 2 * exact)


def test_vae_draws_one_number_per_latent_also_in_eval_mode() -> None:
    encoded = torch.randn(2, 8, 5)
    mean, scale = encoded.chunk(2, 1)
    torch.manual_seed(3)
    latents = VAEBottleneck().eval().encode(encoded)
    torch.manual_seed(3)
    torch.testing.assert_close(latents, torch.randn(2, 4, 5) * (nn.functional.softplus(scale) + 1e-4) + mean)


def test_vae_divergence_is_finite_where_the_scale_vanishes_in_half_precision() -> None:
    kl = vae_sample(torch.zeros(1, 2, 3).half(), torch.full((1, 2, 3), -60.0).half()).kl
    assert kl.isfinite()


def test_vae_refuses_channels_that_do_not_split() -> None:
    with pytest.raises(ValueError, match="the encoder gives 7 channels"):
        VAEBottleneck().encode(torch.randn(1, 7, 3))


def test_tanh_is_bounded_by_its_scale() -> None:
    latents = TanhBottleneck(scale=3.0).encode(100 * torch.randn(1, 4, 50))
    assert latents.abs().max() <= 3.0
    small = 1e-3 * torch.randn(1, 4, 50)
    torch.testing.assert_close(TanhBottleneck(scale=3.0).encode(small), small, rtol=1e-3, atol=0)


def test_l2_puts_every_frame_on_the_sphere_both_ways() -> None:
    bottleneck = L2Bottleneck()
    for latents in (bottleneck.encode(5 * torch.randn(2, 4, 9)), bottleneck.decode(5 * torch.randn(2, 4, 9))):
        torch.testing.assert_close(latents.norm(dim=1), torch.ones(2, 9))


def test_mmd_tells_the_normal_from_others_and_matches_the_plain_sum() -> None:
    latents = torch.randn(2, 6, 30)
    torch.manual_seed(5)
    mmd = compute_mmd(latents)
    torch.manual_seed(5)
    frames = latents.permute(0, 2, 1).reshape(-1, 6)
    normal = torch.randn_like(frames)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(x[:, None] - y[None]).pow(2).mean(2) / 6).mean()

    plain = kernel(frames, frames) + kernel(normal, normal) - 2 * kernel(frames, normal)
    # Squared distances by |x|^2 + |y|^2 - 2xy lose some digits of the small difference.
    torch.testing.assert_close(mmd, plain, rtol=1e-3, atol=1e-6)
    assert compute_mmd(latents + 3) > 10 * mmd


def test_wasserstein_tells_its_distance_in_training_only() -> None:
    bottleneck = WassersteinBottleneck()
    assert "mmd" in bottleneck.encode(torch.randn(1, 4, 9), return_info=True)[1]
    assert "mmd" not in bottleneck.eval().encode(torch.randn(1, 4, 9), return_info=True)[1]
    bypassed = WassersteinBottleneck(bypass_mmd=True).encode(torch.randn(1, 4, 9), return_info=True)[1]
    assert bypassed["mmd"] == 0


def test_noise_channels_follow_the_seed_and_leave_the_latents() -> None:
    latents = torch.randn(2, 4, 9)
    torch.manual_seed(8)
    widened = WassersteinBottleneck(noise_augment_dim=3).decode(latents)
    torch.manual_seed(8)
    torch.testing.assert_close(widened, torch.cat([latents, torch.randn(2, 3, 9)], 1), rtol=0, atol=0)


def test_soft_norm_pulls_to_zero_mean_and_unit_variance() -> None:
    bottleneck = SoftNormBottleneck(dim=4)
    standard = bottleneck.encode(torch.randn(2, 4, 4000), return_info=True)[1]["softnorm_loss"]
    shifted = bottleneck.encode(2 + 3 * torch.randn(2, 4, 4000), return_info=True)[1]["softnorm_loss"]
    assert standard < 2  # the second term averages over four channels only
    assert shifted > standard + 5
    assert "softnorm_loss" not in bottleneck.eval().encode(torch.randn(2, 4, 9), return_info=True)[1]
    with torch.no_grad():
        bottleneck.scaling_factor.fill_(2.0)
        bottleneck.bias.fill_(1.0)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(bottleneck.encode(x), 2 * x + 1)
