"""Random noise levels for training: t in [0, 1], where 1 is pure noise."""

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-4  # keeps log-SNR finite


def sample_timesteps_logsnr(batch_size: int, mean_logsnr: float = -1.2, std_logsnr: float = 2.0) -> Tensor:
    """t whose log-SNR, log((1 - t) / t), is normal; kept away from 0 and 1."""
    return torch.sigmoid(-(mean_logsnr + std_logsnr * torch.randn(batch_size))).clamp(_LEAST, 1 - _LEAST)


def sample_timesteps_logsnr_uniform(batch_size: int, min_logsnr: float = -6.0, max_logsnr: float = 5.0) -> Tensor:
    """t whose log-SNR is uniform between two bounds; kept away from 0 and 1."""
    logsnr = min_logsnr + (max_logsnr - min_logsnr) * torch.rand(batch_size)
    return torch.sigmoid(-logsnr).clamp(_LEAST, 1 - _LEAST)


def truncated_logistic_normal_rescaled(
    shape: int | Sequence[int], left_trunc: float = 0.075, right_trunc: float = 1.0
) -> Tensor:
    """Logit-normal draws between two cuts, stretched so that the left cut is 0 and the right one 1.

    The cuts are made in the normal's distribution function: u -> low + (high - low) u.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = (normal.cdf(torch.logit(torch.tensor(cut))) for cut in (left_trunc, right_trunc))
    inside = low + (high - low) * normal.cdf(torch.randn(shape))
    return (torch.sigmoid(normal.icdf(inside)) - left_trunc) / (right_trunc - left_trunc)
