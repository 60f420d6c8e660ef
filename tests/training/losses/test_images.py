"""Distance of spectrograms as images."""

import pytest
import torch
from torch.nn import functional as F

from stable_audio_tools.training.losses.images import MultiResolutionImageLoss, structural_similarity


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_images_are_at_distance_zero() -> None:
    x = picture()
    assert MultiResolutionImageLoss()(x, x).item() == pytest.approx(0, abs=1e-6)
    assert structural_similarity(x[:, None], x[:, None]).item() == pytest.approx(1)


def test_terms_at_one_resolution_are_their_definitions() -> None:
    x, y = picture(), picture(1)
    edges = (x.diff(dim=1) - y.diff(dim=1)).abs().mean() + (x.diff(dim=2) - y.diff(dim=2)).abs().mean()
    for weights, expected in (
        ((1.0, 0.0, 0.0), (x - y).abs().mean()),
        ((0.0, 2.0, 0.0), 2 * edges),
        ((0.0, 0.0, 1.0), 1 - structural_similarity(x[:, None], y[:, None])),
    ):
        torch.testing.assert_close(MultiResolutionImageLoss((1,), *weights)(x, y), expected)


def test_a_blurred_image_is_further_away_than_its_values_tell() -> None:
    """The edges and the structure miss what a mean absolute difference hardly sees."""
    x = picture()
    blurred = F.avg_pool1d(x, 5, 1, 2)
    lifted = x + (x - blurred).abs().mean()
    loss = MultiResolutionImageLoss((1,))
    assert (x - blurred).abs().mean() == pytest.approx((x - lifted).abs().mean().item(), rel=1e-3)
    assert loss(blurred, x) > 2 * loss(lifted, x)


def test_small_images_use_the_resolutions_that_they_have() -> None:
    x, y = torch.rand(1, 8, 8), torch.rand(1, 8, 8)
    torch.testing.assert_close(MultiResolutionImageLoss()(x, y), MultiResolutionImageLoss((1,))(x, y))
    with pytest.raises(ValueError, match="scales must be whole numbers of at least 1"):
        MultiResolutionImageLoss(())
