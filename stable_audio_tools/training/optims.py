"""The optimisers of stable-audio-tools 0.0.20: cautious AdamW and Lion, and Muon with AdamW for vectors."""

import math
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial, for fast convergence


class CAdamW(Optimizer):
    """AdamW whose update keeps only what agrees with the gradient in sign (Liang et al. 2024)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        _check(lr=lr, eps=eps, weight_decay=weight_decay)
        _check_betas(betas)
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _evaluated(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
        state["step"] += 1
        first, second = group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        momentum, variance = state["exp_avg"], state["exp_avg_sq"]
        momentum.mul_(first).add_(gradient, alpha=1 - first)
        variance.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = group["lr"]
        if group["correct_bias"]:
            size *= math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        agrees = (momentum * gradient > 0).to(gradient.dtype)
        agrees /= agrees.mean().clamp(min=1e-3)
        parameter.addcdiv_(momentum * agrees, variance.sqrt() + group["eps"], value=-size)


class CLion(Optimizer):
    """Lion (Chen et al. 2023) whose update keeps only what agrees with the gradient in sign."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        _check(lr=lr, weight_decay=weight_decay)
        _check_betas(betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _evaluated(closure)
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = (momentum * first + gradient * (1 - first)).sign()
                agrees = (update * gradient > 0).to(gradient.dtype)
                parameter.add_(update * agrees * (agrees.numel() / (agrees.sum() + 1)), alpha=-group["lr"])
                momentum.mul_(second).add_(gradient, alpha=1 - second)
        return loss


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for tensors of two or more axes, AdamW for vectors and scalars.

    Matrices whose name matches one of `fused_layer_patterns` (shell-style globs) and that are taller than wide hold
    several maps on top of each other (queries, keys and values): square blocks of them are orthogonalised one by one.
    Names are known where pairs (name, parameter) or a module were given.
    """

    def __init__(
        self,
        params: Iterable[Any],
        muon_lr: float = 0.02,
        muon_momentum: float = 0.95,
        muon_nesterov: bool = True,
        muon_weight_decay: float = 0.0,
        ns_steps: int = 5,
        adam_lr: float = 3e-4,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        adam_weight_decay: float = 0.01,
        fused_layer_patterns: Sequence[str] | None = None,
    ) -> None:
        _check(muon_lr=muon_lr, adam_lr=adam_lr, adam_eps=adam_eps)
        _check_betas(adam_betas)
        entries = [entry if isinstance(entry, tuple) else ("", entry) for entry in params]
        patterns = fused_layer_patterns or ()
        fused = {id(p) for name, p in entries if any(fnmatchcase(name, pattern) for pattern in patterns)}
        if patterns and not any(name for name, _ in entries):
            raise ValueError("fused_layer_patterns select by name; give the module or its named_parameters()")
        matrices = [parameter for _, parameter in entries if parameter.ndim >= 2]
        shared = {"lr": muon_lr, "betas": adam_betas, "eps": adam_eps, "weight_decay": muon_weight_decay}
        muon = {**shared, "momentum": muon_momentum, "nesterov": muon_nesterov, "ns_steps": ns_steps, "use_muon": True}
        adam = {**muon, "lr": adam_lr, "weight_decay": adam_weight_decay, "use_muon": False}
        groups = [
            {"params": [p for p in matrices if id(p) not in fused], **muon, "fused": False},
            {"params": [p for p in matrices if id(p) in fused], **muon, "fused": True},
            {"params": [p for _, p in entries if p.ndim < 2], **adam, "fused": False},
        ]
        super().__init__([group for group in groups if group["params"]], {**muon, "fused": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _evaluated(closure)
        for group in self.param_groups:
            update = self._muon if group["use_muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        beta = group["momentum"]
        momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - beta)
        update = gradient.lerp(momentum, beta) if group["nesterov"] else momentum
        matrix = update.flatten(1) if update.ndim == 4 else update  # kernels of one axis go row by row
        if group["fused"] and len(matrix) > matrix.shape[1]:
            blocks = [orthogonalise(block, group["ns_steps"]) for block in matrix.split(matrix.shape[1])]
            matrix = torch.cat(blocks)
        else:
            matrix = orthogonalise(matrix, group["ns_steps"])
            matrix = matrix * max(1.0, matrix.shape[-2] / matrix.shape[-1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(matrix.reshape(parameter.shape).to(parameter.dtype), alpha=-group["lr"])

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
        state["step"] += 1
        first, second = group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt() + group["eps"]
        parameter.addcdiv_(state["exp_avg"], deviation, value=-group["lr"] / (1 - first ** state["step"]))


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest orthogonal matrix over the last two axes, roughly, by Newton-Schulz steps in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _check(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value:g}")


def _check_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be at least 0 and less than 1, got {tuple(betas)}")
