"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, beside AdamW for all other parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

# Coefficients of the quintic iteration that brings singular values close to 1 in few steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_RMS_OF_ADAMW = 0.2  # typical size of an AdamW update, so that both parts take one learning rate (Liu et al. 2025)


class Muon(Optimizer):
    """Groups with `muon: true` hold matrices and take orthogonal steps; the others take those of AdamW.

    Convolutions count as matrices of output channels against the rest. An update is scaled to the size of one of
    AdamW, so rates and decays of AdamW carry over.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        muon: bool = True,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must be at least 0, got {lr:g} and {weight_decay:g}")
        if not 0 <= momentum < 1 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"momentum and betas must be at least 0 and less than 1, got {momentum:g} and {betas}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "betas": betas,
            "eps": eps,
            "muon": muon,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            vectors = [p for p in group["params"] if group["muon"] and p.ndim < 2]
            if vectors:
                raise ValueError(f"a group with muon: true holds a parameter of shape {tuple(vectors[0].shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    (self._turn if group["muon"] else self._adamw)(parameter, parameter.grad, group)
        return loss

    def _turn(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        rows = whole.flatten(1)
        turned = orthogonalized(rows, group["ns_steps"]).to(parameter.dtype).view_as(whole)
        if isinstance(update, DTensor):
            turned = distribute_tensor(turned, update.device_mesh, update.placements)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(turned, alpha=-group["lr"] * _RMS_OF_ADAMW * max(rows.shape) ** 0.5)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - beta1 ** state["step"]))


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """The matrix with singular values near 1, by `steps` Newton-Schulz iterations in bfloat16."""
    a, b, c = _QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def matrices_apart(groups: Iterable[Any], tables: set[int]) -> list[dict[str, Any]]:
    """Parameters or groups of them, with the matrices of each in a group of their own; `tables` are no matrices."""
    given = list(groups)
    if given and not isinstance(given[0], dict):
        given = [{"params": given}]
    parted: list[dict[str, Any]] = []
    for group in given:
        if group.get("muon") is False:
            parted.append(group)
            continue
        for muon in (True, False):
            chosen = [p for p in group["params"] if (p.ndim >= 2 and id(p) not in tables) is muon]
            if chosen:
                parted.append({**group, "muon": muon, "params": chosen})
    return parted
