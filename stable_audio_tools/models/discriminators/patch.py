"""The patch critic (Isola et al. 2017): convolutions whose every score sees a patch of a spectrogram."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.discriminators.losses import AdversarialName, AudioCritic, Opinion, distances, mean

_KERNEL = 4
_SLOPE = 0.2
_GROUPS = 8


@register("discriminator", "patch")
class PatchDiscriminator(AudioCritic):
    """Scores of overlapping patches of a spectrogram whose bands are channels, (b, bands, t)."""

    def __init__(
        self,
        filters: Annotated[int, Field(ge=8, multiple_of=8, description="channels of the first convolution")] = 64,
        num_layers: Annotated[int, Field(ge=1, description="convolutions that halve bands and frames")] = 3,
        loss_type: Annotated[AdversarialName, Field(description="adversarial loss")] = "hinge",
        *,
        in_channels: Runtime[int] = 1,
    ) -> None:
        super().__init__(loss_type)
        widths = [filters * min(2**index, 8) for index in range(num_layers + 1)]
        strides = [2] * num_layers + [1]
        self.blocks = nn.ModuleList()
        before = 1
        for index, (width, stride) in enumerate(zip(widths, strides)):
            norm = nn.GroupNorm(_GROUPS, width) if index else nn.Identity()
            conv = nn.Conv2d(before, width, _KERNEL, stride, padding=_KERNEL // 2)
            self.blocks.append(nn.Sequential(conv, norm, nn.LeakyReLU(_SLOPE)))
            before = width
        self.score = nn.Conv2d(before, 1, _KERNEL, padding=_KERNEL // 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, audio: Tensor) -> list[Opinion]:
        """Score (b, bands, t), seen as an image of one channel."""
        image = audio[:, None]
        features: list[Tensor] = []
        for block in self.blocks:
            image = block(image)
            features.append(image)
        return [Opinion(self.score(image), features)]

    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the mean absolute difference of the activations."""
        return mean(torch.stack(distances(r, f)).mean() for r, f in zip(real, fake))
