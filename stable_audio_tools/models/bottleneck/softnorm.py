"""The bottleneck of Stable Audio 3: as `soft_norm`, with a running deviation of all latents and noise on decoding."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.models.bottleneck.base import Bottleneck, Compressed, append_noise
from stable_audio_tools.models.bottleneck.simple import NoiseChannels, divergence_from_normal, soft_norm_facts

_TRAINING_NOISE, _NOISE = 5e-2, 1e-3  # in deviations of the latents
_KEPT = 0.999  # of the running deviation, per step
_LEAST_DEVIATION = 1e-4


@register("bottleneck", "softnorm", facts=soft_norm_facts)
class RunningSoftNormBottleneck(Bottleneck):
    """A learned scale and offset per channel, divided by a running deviation; in training pulled to the normal."""

    running_std: nn.Parameter

    def __init__(
        self,
        dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 32,
        noise_augment_dim: NoiseChannels = 0,
        noise_regularize: Annotated[
            bool, Field(description="noise on decode: a twentieth of the deviation in training, a thousandth otherwise")
        ] = False,
        auto_scale: Annotated[
            bool, Field(description="divide by the running deviation of all latents, and multiply by it on decode")
        ] = False,
        freeze: Annotated[bool, Field(description="train neither scale nor offset, and keep the deviation")] = False,
    ) -> None:
        super().__init__()
        self.noise_augment_dim = noise_augment_dim
        self.noise_regularize = noise_regularize
        self.auto_scale = auto_scale
        self.freeze = freeze
        self.scaling_factor = nn.Parameter(torch.ones(1, dim, 1), requires_grad=not freeze)
        self.bias = nn.Parameter(torch.zeros(1, dim, 1), requires_grad=not freeze)
        self.noise_scaling_factor = nn.Parameter(torch.ones(1, noise_augment_dim, 1), requires_grad=not freeze)
        if auto_scale:
            self.running_std = nn.Parameter(torch.ones(1), requires_grad=False)

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        x = x * self.scaling_factor + self.bias
        if self.auto_scale:
            if self.training and not self.freeze:
                self._update(x.detach())
            x = x / self.running_std
        if not losses:
            return Compressed(x, {})
        over_time, over_channels = divergence_from_normal(x, -1), divergence_from_normal(x, -2)
        return Compressed(x, {"softnorm_loss": over_time + 0.4 * over_channels})

    def _update(self, x: Tensor) -> None:
        moved = self.running_std.detach() * _KEPT + x.std() * (1 - _KEPT)
        # A new tensor, not a change in place: the last step's graph may still hold the old one.
        self.running_std.data = moved.clamp(min=_LEAST_DEVIATION).to(self.running_std)

    def decode(self, x: Tensor) -> Tensor:
        if self.auto_scale:
            x = x * self.running_std
        if self.noise_regularize:
            deviation = self.running_std if self.auto_scale else x.std(dim=-1, keepdim=True)
            x = x + torch.randn_like(x) * deviation * (_TRAINING_NOISE if self.training else _NOISE)
        return append_noise(x, self.noise_augment_dim, self.noise_scaling_factor)

    def requires_grad_(self, requires_grad: bool = True) -> "RunningSoftNormBottleneck":
        """The running deviation never trains, and of a frozen one nothing does."""
        super().requires_grad_(requires_grad and not self.freeze)
        if self.auto_scale:
            self.running_std.requires_grad_(False)
        return self
