"""Gradients of one optimiser: their norm, clipping, and the scale of float16 training."""

import math
from collections.abc import Iterable

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def with_gradients(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of the optimiser that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the euclidean norm of all gradients together, on their device."""
    norms = torch._foreach_norm(_gradients(parameters))
    return _gathered(torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms])))


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Clip the gradient to a norm of at most `largest`, and return its former norm."""
    return _gathered(nn.utils.clip_grad_norm_(parameters, largest))


def are_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return whether every gradient is finite: one boolean, on their device."""
    norms = torch._foreach_norm(_gradients(parameters), ord=math.inf)
    return torch.isfinite(_gathered(torch.stack([norm.float() for norm in norms]))).all()


def scaler_of(trainer: pl.Trainer) -> GradScaler | None:
    """Return the gradient scaler of float16 training, if there is one."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def unscale(trainer: pl.Trainer, optimizer: Optimizer) -> None:
    """Divide gradients by the scale if the optimiser would do that itself, inside its step."""
    scaler = scaler_of(trainer)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _gathered(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
