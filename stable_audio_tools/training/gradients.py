"""Gradients of one optimiser: their norm, clipping, and the scale of float16 training."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def with_gradients(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of the optimiser that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The euclidean norm of all gradients together, on their device."""
    norms = torch._foreach_norm(_gradients(parameters))
    return _whole(torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms])))


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Shorten the gradient to a norm of at most `largest` -> its norm before."""
    return _whole(nn.utils.clip_grad_norm_(parameters, largest))


def are_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Is every gradient finite? One boolean, on the gradients' device."""
    norms = torch._foreach_norm(_gradients(parameters), ord=math.inf)
    return torch.isfinite(_whole(torch.stack([norm.float() for norm in norms]))).all()


def scaler_of(trainer: Any) -> Any:
    """The gradient scaler of float16 training, where there is one."""
    return getattr(trainer.precision_plugin, "scaler", None)


def unscale(trainer: Any, optimizer: Optimizer) -> None:
    """Divide gradients by the scale where the optimiser would do that itself, inside its step."""
    scaler = scaler_of(trainer)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
