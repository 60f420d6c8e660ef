"""Published import path of discrepancies between sets of vectors."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from stable_audio_tools.training.losses.modules import DynamicLossWeighting, mean_discrepancy

__all__ = ["DynamicLossWeighting", "grouped_mmd", "mmd"]


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (1,), dim: int | None = None) -> Tensor:
    """Maximum mean discrepancy of two sets of vectors under rational quadratic kernels.

    The vectors are the axis `dim` at every place of the others; if it is omitted, everything but the batch.
    """
    a, b = ((z.flatten(1) if dim is None else z.movedim(dim, -1).flatten(0, -2)) for z in (x, y))
    return mean_discrepancy(a, b, bandwidths)


def grouped_mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (1,), groups: int = 2) -> Tensor:
    """`mmd` of (b, c, t) over the channels' groups of every item together."""
    pattern = "... (g f) t -> ... g (f t)"
    return mmd(rearrange(x, pattern, g=groups), rearrange(y, pattern, g=groups), bandwidths)
