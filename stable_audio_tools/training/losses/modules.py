"""Named, weighted losses over a dictionary of what a training step computed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Info = Mapping[str, Any]  # name -> tensor; masks may be None


class LossModule(nn.Module):
    """A loss with a weight, which falls by `decay` at every training step.

    The weight is in checkpoints, so that a decaying one continues; one that does not decay follows the config.
    """

    weight: Tensor

    def __init__(self, name: str, weight: float = 1.0, decay: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self.decay = float(decay)
        self.master_weight = float(weight)
        self.register_buffer("weight", torch.tensor(self.master_weight))

    def compute(self, info: Info) -> Tensor:
        """The loss before weighting."""
        raise NotImplementedError

    def forward(self, info: Info) -> Tensor:
        loss = self.compute(info)
        if self.training and self.decay != 1.0:
            self.weight.mul_(self.decay)
        return self.weight * loss

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.decay == 1.0:
            self.weight.fill_(self.master_weight)


class ValueLoss(LossModule):
    """A number that the step computed."""

    def __init__(self, key: str, name: str, weight: float = 1.0, decay: float = 1.0) -> None:
        super().__init__(name, weight, decay)
        self.key = key

    def compute(self, info: Info) -> Tensor:
        value: Tensor = info[self.key]
        return value


class TargetValueLoss(LossModule):
    """The distance of a number from a target."""

    def __init__(self, key: str, target: float, name: str, weight: float = 1.0) -> None:
        super().__init__(name, weight)
        self.key = key
        self.target = target

    def compute(self, info: Info) -> Tensor:
        distance: Tensor = (info[self.key] - self.target).abs()
        return distance


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (b, c, t) where the mask, (b, t), (b, 1, t) or (b, c, t), is true or not zero; 0 where it nowhere is."""
    if mask is None:
        return values.mean()
    if mask.ndim == values.ndim - 1:
        mask = mask.unsqueeze(1)
    if mask.ndim != values.ndim or mask.shape[-1] != values.shape[-1]:
        raise ValueError(f"mask of shape {tuple(mask.shape)} for values of shape {tuple(values.shape)}")
    kept = (mask != 0).expand_as(values)
    return torch.where(kept, values, 0.0).sum() / kept.sum().clamp(min=1)


class _Elementwise(LossModule):
    """A distance of two tensors, averaged where a mask allows."""

    def __init__(self, key_a: str, key_b: str, weight: float, mask_key: str | None, name: str, decay: float) -> None:
        super().__init__(name, weight, decay)
        self.key_a = key_a
        self.key_b = key_b
        self.mask_key = mask_key

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def compute(self, info: Info) -> Tensor:
        mask = None if self.mask_key is None else info.get(self.mask_key)
        return masked_mean(self.distance(info[self.key_a], info[self.key_b]), mask)


class L1Loss(_Elementwise):
    """Mean absolute difference."""

    def __init__(
        self,
        key_a: str,
        key_b: str,
        weight: float = 1.0,
        mask_key: str | None = None,
        name: str = "l1_loss",
        decay: float = 1.0,
    ) -> None:
        super().__init__(key_a, key_b, weight, mask_key, name, decay)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return F.l1_loss(a, b, reduction="none")


class MSELoss(_Elementwise):
    """Mean squared difference."""

    def __init__(
        self,
        key_a: str,
        key_b: str,
        weight: float = 1.0,
        mask_key: str | None = None,
        name: str = "mse_loss",
        decay: float = 1.0,
    ) -> None:
        super().__init__(key_a, key_b, weight, mask_key, name, decay)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return F.mse_loss(a, b, reduction="none")


class StereoImageLoss(_Elementwise):
    """Half the cosine distance of the channels at every moment: 0 in the same place, 1 opposite."""

    def __init__(
        self,
        key_a: str,
        key_b: str,
        weight: float = 1.0,
        mask_key: str | None = None,
        name: str = "stereo_image_loss",
        decay: float = 1.0,
    ) -> None:
        super().__init__(key_a, key_b, weight, mask_key, name, decay)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).unsqueeze(1)


class TimeDomainMMDLoss(LossModule):
    """Maximum mean discrepancy of two sets of sequences, under a mixture of rational quadratic kernels."""

    bandwidths = (0.0001, 0.001, 0.01, 0.1, 1.0)

    def __init__(
        self, key_a: str, key_b: str, weight: float = 1.0, name: str = "time_domain_mmd_loss", decay: float = 1.0
    ) -> None:
        super().__init__(name, weight, decay)
        self.key_a = key_a
        self.key_b = key_b

    def compute(self, info: Info) -> Tensor:
        a, b = (info[key].flatten(0, -2) for key in (self.key_a, self.key_b))
        return mean_discrepancy(a, b, self.bandwidths)


def mean_discrepancy(a: Tensor, b: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Maximum mean discrepancy of rows (n, d), under a mixture of rational quadratic kernels of these bandwidths."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        """Mean over all pairs and bandwidths of 1 / (1 + mean squared difference / (2 * bandwidth))."""
        squares = x.square().mean(1)[:, None] + y.square().mean(1)[None] - 2 * (x @ y.T) / x.shape[1]
        squares = squares.clamp(min=0.0)
        return torch.stack([(1 / (1 + squares / (2 * width))).mean() for width in bandwidths]).mean()

    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


class LossWithTarget(LossModule):
    """Any module that compares (input, target)."""

    def __init__(
        self,
        loss_module: nn.Module,
        input_key: str,
        target_key: str,
        name: str,
        weight: float = 1.0,
        decay: float = 1.0,
    ) -> None:
        super().__init__(name, weight, decay)
        self.loss_module = loss_module
        self.input_key = input_key
        self.target_key = target_key

    def compute(self, info: Info) -> Tensor:
        loss: Tensor = self.loss_module(info[self.input_key], info[self.target_key])
        return loss


class AuralossLoss(LossWithTarget):
    """A spectral loss called as (target, input): published models were trained so.

    Spectral convergence is then relative to the norm of the reconstruction, not of the original.
    """

    def compute(self, info: Info) -> Tensor:
        loss: Tensor = self.loss_module(info[self.target_key], info[self.input_key])
        return loss


class MultiLoss(nn.Module):
    """The sum of losses, and each by its name."""

    def __init__(self, losses: Iterable[LossModule]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, info: Info) -> tuple[Tensor, dict[str, Tensor]]:
        if len(self.losses) == 0:
            raise ValueError("no loss to sum: loss_configs gives no weight to any")
        values = [loss(info) for loss in self.losses]
        names = [str(loss.name) for loss in self.losses]
        return torch.stack([value.reshape(()) for value in values]).sum(), dict(zip(names, values))


class DynamicLossWeighting(nn.Module):
    """A weight that is learnt: loss exp(-w) + w, least where w is the loss's logarithm (Karras et al. 2024, eq. 21)."""

    def __init__(self, init_val: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = nn.Parameter(torch.tensor(float(init_val)))

    def forward(self, loss: Tensor) -> Tensor:
        return loss * torch.exp(-self.loss_weight) + self.loss_weight
