"""Distance of spectrograms as images, at several resolutions: what a perceptual network would look at, without one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WINDOW = 7  # of the local statistics, as usual for structural similarity
_STABLE = ((0.01 * 2) ** 2, (0.03 * 2) ** 2)  # Wang et al. 2004, for values from -1 to 1


class MultiResolutionImageLoss(nn.Module):
    """Sum of three distances, averaged over resolutions; x, y (b, bands, t) in [-1, 1].

    - values: mean absolute difference
    - edges: mean absolute difference of the steps from frame to frame (onsets) and from band to band (partials)
    - structure: one minus the structural similarity (Wang et al. 2004), which a blurred image loses
    """

    def __init__(
        self,
        scales: Sequence[int] = (1, 2, 4, 8),
        value_weight: float = 1.0,
        edge_weight: float = 1.0,
        structure_weight: float = 0.5,
        image_channels: int = 1,
    ) -> None:
        super().__init__()
        if not scales or min(scales) < 1:
            raise ValueError(f"scales must be whole numbers of at least 1, got {list(scales)}")
        self.scales, self.image_channels = tuple(scales), image_channels
        self.value_weight, self.edge_weight, self.structure_weight = value_weight, edge_weight, structure_weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        images = [signal.float().unflatten(1, (self.image_channels, -1)) for signal in (x, y)]
        smallest = min(images[0].shape[-2:])
        used = [scale for scale in self.scales if scale == 1 or smallest // scale >= _WINDOW]
        return torch.stack([self._distance(*(_shrunk(image, scale) for image in images)) for scale in used]).mean()

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        edges = sum((F.l1_loss(x.diff(dim=dim), y.diff(dim=dim)) for dim in (-1, -2)), start=x.new_zeros(()))
        structure = 1 - structural_similarity(x, y)
        return self.value_weight * F.l1_loss(x, y) + self.edge_weight * edges + self.structure_weight * structure


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Mean over windows of 7 x 7 of images (b, c, bands, t) in [-1, 1]; 1 for equal images."""
    size = min(_WINDOW, *x.shape[-2:])

    def blur(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, size, stride=1)

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + _STABLE[0]) / (mean_x**2 + mean_y**2 + _STABLE[0])
    shape = (2 * covariance + _STABLE[1]) / (variance_x + variance_y + _STABLE[1])
    return (light * shape).mean()


def _shrunk(image: Tensor, scale: int) -> Tensor:
    return image if scale == 1 else F.avg_pool2d(image, scale)
