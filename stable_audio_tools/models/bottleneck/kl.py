"""The variational bottleneck of latent diffusion (Rombach et al. 2022): the encoder tells means and log variances."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.models.bottleneck.base import Compressed, facts, in_full_precision
from stable_audio_tools.models.bottleneck.vae import VAEBottleneck

_LOG_VARIANCES = (-30.0, 20.0)


@register("bottleneck", "kl", facts=lambda config: facts(encoder_multiple=2))
class KLBottleneck(VAEBottleneck):
    """A draw from N(mean, exp(log variance)), or its mean at inference; as in diffusers' AutoencoderKL."""

    def __init__(
        self,
        sample: Annotated[
            bool, Field(description="draw at inference too, as published models of audio images do")
        ] = True,
    ) -> None:
        super().__init__()
        self.sample = sample

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        """The divergence is that from N(0, 1), summed over channels, averaged over items and frames."""
        mean, log_variance = x.chunk(2, dim=1)
        log_variance = log_variance.clamp(*_LOG_VARIANCES)
        latents = mean
        if self.sample or self.training:
            latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        mean, log_variance = in_full_precision(mean), in_full_precision(log_variance)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return Compressed(latents, {"kl": divergence.sum(1).mean()})
