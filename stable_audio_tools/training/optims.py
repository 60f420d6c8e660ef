"""Muon beside AdamW, and the optimisers of stable-audio-tools 0.0.20: cautious AdamW and Lion, `MuonAdamW`."""

import math
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

Group = dict[str, Any]  # parameters under "params", beside the options of their steps
Closure = Callable[[], float] | None

# Coefficients of the quintic iteration that brings singular values close to 1 in few steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_RMS_OF_ADAMW = 0.2  # typical size of an AdamW update, so that both parts take one learning rate (Liu et al. 2025)


class _EachParameter(Optimizer):
    """An optimiser whose step treats each parameter alone."""

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        """Change one parameter in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)
        return loss

    def count(self, parameter: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the running means of the gradient and of its square, and the number of this step."""
        state = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
        state["step"] += 1
        return state["exp_avg"], state["exp_avg_sq"], state["step"]

    def adamw(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        """AdamW (Loshchilov and Hutter 2019)."""
        momentum, variance, step = self.count(parameter, gradient)
        first, second = group["betas"]
        momentum.lerp_(gradient, 1 - first)
        variance.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (variance / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(momentum, deviation, value=-group["lr"] / (1 - first**step))

    def momentum(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """Return the update of Muon before its matrices are orthogonalised."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(average, group["momentum"]) if group["nesterov"] else average


class CAdamW(_EachParameter):
    """AdamW whose update keeps only what agrees with the gradient in sign (Liang et al. 2024)."""

    def __init__(
        self,
        params: ParamsT,
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

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        momentum, variance, step = self.count(parameter, gradient)
        first, second = group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        momentum.mul_(first).add_(gradient, alpha=1 - first)
        variance.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = group["lr"]
        if group["correct_bias"]:
            size *= math.sqrt(1 - second**step) / (1 - first**step)
        agrees = (momentum * gradient > 0).to(gradient.dtype)
        agrees /= agrees.mean().clamp(min=1e-3)
        parameter.addcdiv_(momentum * agrees, variance.sqrt() + group["eps"], value=-size)


class CLion(_EachParameter):
    """Lion (Chen et al. 2023) whose update keeps only what agrees with the gradient in sign."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        _check(lr=lr, weight_decay=weight_decay)
        _check_betas(betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        first, second = group["betas"]
        momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        update = (momentum * first + gradient * (1 - first)).sign()
        agrees = (update * gradient > 0).to(gradient.dtype)
        parameter.add_(update * agrees * (agrees.numel() / (agrees.sum() + 1)), alpha=-group["lr"])
        momentum.mul_(second).add_(gradient, alpha=1 - second)


class MuonAdamW(_EachParameter):
    """Muon (Jordan et al. 2024) for tensors of two or more axes, AdamW for vectors and scalars.

    Matrices whose name matches one of `fused_layer_patterns` (shell-style globs) and that are taller than wide hold
    several maps on top of each other (queries, keys and values): square blocks of them are orthogonalised one by one.
    Names are known if pairs (name, parameter) or a module are given.
    """

    def __init__(
        self,
        params: Iterable[Tensor | tuple[str, Tensor]],
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

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        if not group["use_muon"]:
            self.adamw(parameter, gradient, group)
            return
        update = self.momentum(parameter, gradient, group)
        matrix = update.flatten(1) if update.ndim == 4 else update  # kernels of one axis go row by row
        if group["fused"] and len(matrix) > matrix.shape[1]:
            blocks = [orthogonalise(block, group["ns_steps"]) for block in matrix.split(matrix.shape[1])]
            matrix = torch.cat(blocks)
        else:
            matrix = orthogonalise(matrix, group["ns_steps"])
            matrix = matrix * max(1.0, matrix.shape[-2] / matrix.shape[-1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(matrix.reshape(parameter.shape).to(parameter.dtype), alpha=-group["lr"])


class Muon(_EachParameter):
    """Muon in groups with `muon: true`, which hold matrices; AdamW in the others.

    Convolutions count as matrices of output channels against the rest. An update is scaled to the size of one of
    AdamW, so rates and decays of AdamW carry over.
    """

    def __init__(
        self,
        params: ParamsT,
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

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        if not group["muon"]:
            self.adamw(parameter, gradient, group)
            return
        update = self.momentum(parameter, gradient, group)
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        rows = whole.flatten(1)
        turned = orthogonalized(rows, group["ns_steps"]).to(parameter.dtype).view_as(whole)
        if isinstance(update, DTensor):
            turned = distribute_tensor(turned, update.device_mesh, update.placements)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(turned, alpha=-group["lr"] * _RMS_OF_ADAMW * max(rows.shape) ** 0.5)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return nearly the nearest orthogonal matrix over the last two axes, by Newton-Schulz steps in bfloat16."""
    a, b, c = _QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """Return the same for one matrix, with the rounding of `torch.optim.Muon`."""
    a, b, c = _QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def matrices_apart(groups: Iterable[Tensor | Group], tables: set[int]) -> list[Group]:
    """Split parameters, or groups of them, into matrices and others; ids in `tables` are not matrices."""
    given = list(groups)
    parts = [entry for entry in given if isinstance(entry, dict)]
    if len(parts) < len(given):
        parts = [{"params": given}]
    parted: list[Group] = []
    for group in parts:
        if group.get("muon") is False:
            parted.append(group)
            continue
        for muon in (True, False):
            chosen = [p for p in group["params"] if (p.ndim >= 2 and id(p) not in tables) is muon]
            if chosen:
                parted.append({**group, "muon": muon, "params": chosen})
    return parted


def _check(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value:g}")


def _check_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be at least 0 and less than 1, got {tuple(betas)}")
