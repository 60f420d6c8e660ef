"""The number f of a model's output whose gradient is the feature; one value per row, (k, d, n) -> (k,).

TRAK differentiates the loss; D-TRAK (Zheng et al. 2024) the mean square of the prediction alone, the loss against zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stable_audio_tools.core.errors import ConfigError

Measure = Callable[[Tensor, Tensor, Tensor], Tensor]  # prediction, target, mask (1, n) of frames that count


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The training loss: mean squared error."""
    return _mean((prediction - target).square(), mask)


def mean_squared_l2_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean square of the prediction: D-TRAK."""
    return _mean(prediction.square(), mask)


def mean(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of the prediction."""
    return _mean(prediction, mask)


def l1_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of absolute values."""
    return _norm(prediction, mask, 1)


def l2_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Root of the sum of squares."""
    return _norm(prediction, mask, 2)


def linf_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Largest absolute value."""
    return _norm(prediction, mask, float("inf"))


MEASURES: dict[str, Measure] = {
    "loss": loss,
    "mean-squared-l2-norm": mean_squared_l2_norm,
    "mean": mean,
    "l1-norm": l1_norm,
    "l2-norm": l2_norm,
    "linf-norm": linf_norm,
}


def find_measure(name: str) -> Measure:
    """The measure of a name, as `--f` takes it."""
    if name not in MEASURES:
        raise ConfigError(f"--f: expected one of {', '.join(MEASURES)}; got {name!r}")
    return MEASURES[name]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum((1, 2)) / (mask.sum() * values.shape[1])


def _norm(prediction: Tensor, mask: Tensor, order: float) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm((prediction * mask).flatten(1), ord=order, dim=1)
    return norms
