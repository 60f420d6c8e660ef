"""Variational bottlenecks (Kingma & Welling 2013): the encoder outputs a distribution, the latents are a sample.

`vae` takes mean and scale, `kl` mean and log variance, as in latent diffusion (Rombach et al. 2022).
"""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.models.bottleneck.base import Bottleneck, Compressed, facts, in_full_precision

MIN_STD = 1e-4


class SampledLatents(NamedTuple):
    """A sample, and the divergence of its distribution."""

    latents: Tensor  # (b, d, t)
    kl: Tensor  # scalar


def vae_sample(mean: Tensor, scale: Tensor) -> SampledLatents:
    """Draw from N(mean, softplus(scale)^2); means and scales (b, d, t).

    The divergence from N(0, 1) is summed over channels, averaged over items and frames, and not halved: the loss
    weights of published configs assume this.
    """
    std = F.softplus(scale) + MIN_STD
    latents = torch.randn_like(mean) * std + mean
    mean, std = in_full_precision(mean), in_full_precision(std)
    divergence = mean.pow(2) + std.pow(2) - 2 * std.log() - 1
    return SampledLatents(latents, divergence.sum(1).mean())


def sample_encoded(x: Tensor) -> SampledLatents:
    """Sample (b, d, t) from encoder output (b, 2d, t), means before scales."""
    if x.shape[1] % 2:
        raise ValueError(
            f"the encoder gives {x.shape[1]} channels, but a vae splits them into means and scales: make its "
            "latent_dim twice the model's"
        )
    return vae_sample(*x.chunk(2, dim=1))


@register("bottleneck", "vae", facts=lambda config: facts(encoder_multiple=2))
class VAEBottleneck(Bottleneck):
    """A sample from the normal distribution that the encoder outputs, in training and at inference."""

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        latents, kl = sample_encoded(x)
        info: dict[str, Tensor] = {"kl": kl}
        return Compressed(latents, info)


_LOG_VARIANCES = (-30.0, 20.0)


@register("bottleneck", "kl", facts=lambda config: facts(encoder_multiple=2))
class KLBottleneck(VAEBottleneck):
    """A sample from N(mean, exp(log variance)), or its mean at inference, as in diffusers' AutoencoderKL."""

    def __init__(
        self,
        sample: Annotated[
            bool, Field(description="draw at inference too, as published models of audio images do")
        ] = True,
    ) -> None:
        super().__init__()
        self.sample = sample

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        """Sample; the divergence from N(0, 1) is summed over channels, averaged over items and frames."""
        mean, log_variance = x.chunk(2, dim=1)
        log_variance = log_variance.clamp(*_LOG_VARIANCES)
        latents = mean
        if self.sample or self.training:
            latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        mean, log_variance = in_full_precision(mean), in_full_precision(log_variance)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return Compressed(latents, {"kl": divergence.sum(1).mean()})
