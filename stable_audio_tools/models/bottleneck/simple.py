"""Continuous bottlenecks: bounded by tanh, on a sphere, pulled to a normal distribution by MMD, scaled per channel."""

from types import SimpleNamespace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.bottleneck.base import Bottleneck, Compressed, append_noise, facts, in_full_precision

NoiseChannels = Annotated[int, Field(ge=0, description="channels of noise that the decoder takes beside the latents")]


@register("bottleneck", "tanh", facts=lambda config: facts())
class TanhBottleneck(Bottleneck):
    """Latents between -scale and scale."""

    def __init__(self, scale: Annotated[float, Field(gt=0, description="bound of the latents")] = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        return Compressed(torch.tanh(x / self.scale) * self.scale, {})


@register("bottleneck", "l2_norm", facts=lambda config: facts())
class L2Bottleneck(Bottleneck):
    """Every frame of latents on the unit sphere."""

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        return Compressed(self.decode(x), {})

    def decode(self, x: Tensor) -> Tensor:
        return F.normalize(in_full_precision(x), dim=1).to(x.dtype)


@register("bottleneck", "wasserstein", facts=lambda config: facts(extra_channels=config.noise_augment_dim))
class WassersteinBottleneck(Bottleneck):
    """Unbounded latents, with the distance of their distribution from the normal as a loss (Tolstikhin et al. 2018)."""

    def __init__(
        self,
        noise_augment_dim: NoiseChannels = 0,
        bypass_mmd: Annotated[bool, Field(description="report a distance of 0 instead of computing it")] = False,
        use_tanh: Annotated[bool, Field(description="bound the latents by tanh_scale")] = False,
        tanh_scale: Annotated[float, Field(gt=0, description="bound of the latents")] = 5.0,
    ) -> None:
        super().__init__()
        self.noise_augment_dim = noise_augment_dim
        self.bypass_mmd = bypass_mmd
        self.use_tanh = use_tanh
        self.tanh_scale = tanh_scale

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        info: dict[str, Tensor] = {}
        if losses:
            info["mmd"] = x.new_zeros(()) if self.bypass_mmd else compute_mmd(x)
        if self.use_tanh:
            x = torch.tanh(x / self.tanh_scale) * self.tanh_scale
        return Compressed(x, info)

    def decode(self, x: Tensor) -> Tensor:
        return append_noise(x, self.noise_augment_dim)


def compute_mmd(latents: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy between frames of latents (b, d, t) and as many normal draws."""
    frames = latents.mT.reshape(-1, latents.shape[1])
    normal = torch.randn_like(frames)
    own, drawn = compute_mean_kernel(frames, frames), compute_mean_kernel(normal, normal)
    return own + drawn - 2 * compute_mean_kernel(frames, normal)


def compute_mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of exp(-|x - y|^2 / d^2) over all pairs of rows (n, d), without the n * n * d differences."""
    x, y = in_full_precision(x), in_full_precision(y)
    squares = x.pow(2).sum(1)[:, None] + y.pow(2).sum(1)[None] - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / x.shape[1] ** 2).mean()


def soft_norm_facts(config: SimpleNamespace) -> JsonObject:
    """Return the facts of a bottleneck with one scale for each of `dim` channels."""
    dim = config.dim if config.dim > 1 else None  # 1: one scale for all channels
    return facts(dim=dim, extra_channels=config.noise_augment_dim)


@register("bottleneck", "soft_norm", facts=soft_norm_facts)
class SoftNormBottleneck(Bottleneck):
    """A learned scale and offset per channel, and in training a pull to zero mean and unit variance."""

    def __init__(
        self,
        dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 32,
        noise_augment_dim: NoiseChannels = 0,
        noise_regularize: Annotated[bool, Field(description="in training, a hundredth of noise on decode")] = False,
    ) -> None:
        super().__init__()
        self.noise_augment_dim = noise_augment_dim
        self.noise_regularize = noise_regularize
        self.scaling_factor = nn.Parameter(torch.ones(1, dim, 1))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1))
        self.noise_scaling_factor = nn.Parameter(torch.ones(1, noise_augment_dim, 1))

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        x = x * self.scaling_factor + self.bias
        if not losses:
            return Compressed(x, {})
        over_time, over_channels = divergence_from_normal(x, -1), divergence_from_normal(x, -2)
        return Compressed(x, {"softnorm_loss": over_time + 0.4 * over_channels})

    def decode(self, x: Tensor) -> Tensor:
        if self.noise_regularize and self.training:
            spread = x.std(dim=-1, keepdim=True)
            x = x + torch.randn_like(x) * spread * 1e-2
        return append_noise(x, self.noise_augment_dim, self.noise_scaling_factor)


def divergence_from_normal(x: Tensor, axis: int) -> Tensor:
    """Return twice the KL divergence of N(mean, variance over `axis`) from N(0, 1), averaged over the other axes."""
    x = in_full_precision(x)
    mean, variance = x.mean(axis), x.std(axis).pow(2).clamp(min=1e-4)
    return (mean.pow(2) + variance - variance.log() - 1).mean()


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
        """Set `requires_grad`, except for the running deviation, and not at all for a frozen bottleneck."""
        super().requires_grad_(requires_grad and not self.freeze)
        if self.auto_scale:
            self.running_std.requires_grad_(False)
        return self
