"""Optimisers and learning-rate schedules by name, from the `optimizer_configs` section."""

import fnmatch
import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stable_audio_tools.config import ConfigError
from stable_audio_tools.config.sentences import nearest
from stable_audio_tools.system.packages import require

logger = logging.getLogger(__name__)

Parameters = Iterable[nn.Parameter] | nn.Module


class InverseLR(LRScheduler):
    """base (1 + k / inv_gamma)^-power, not below `final_lr`, times an exponential warm-up 1 - warmup^(k + 1)."""

    def __init__(
        self,
        optimizer: Optimizer,
        inv_gamma: float = 1.0,
        power: float = 1.0,
        warmup: float = 0.0,
        final_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be at least 0 and less than 1, got {warmup}")
        self.inv_gamma, self.power, self.warmup, self.final_lr = inv_gamma, power, warmup, final_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        step = self.last_epoch
        warmth = 1 - self.warmup ** (step + 1)
        decay = (1 + step / self.inv_gamma) ** -self.power
        return [warmth * max(self.final_lr, base * decay) for base in self.base_lrs]


def create_optimizer_from_config(optimizer_config: Mapping[str, Any], parameters: Parameters) -> Optimizer:
    """`{"type": ..., "config": {...}}` -> an optimiser of torch, FusedAdam, or an 8-bit one of bitsandbytes.

    Given a module, `"groups": [{"match": "*.bias", "weight_decay": 0}]` in the node sets options by parameter name.
    """
    name, options = _node(optimizer_config, "optimizer", extra=("groups",))
    maker = _optimizer_class(name)
    groups = optimizer_config.get("groups")
    if groups is not None and not isinstance(parameters, nn.Module):
        raise ConfigError("optimizer.groups: parameter groups need the names of a module's parameters")
    if isinstance(parameters, nn.Module):
        chosen: Any = _grouped(parameters, groups or ())
    else:
        chosen = list(parameters)
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    optimizer: Optimizer = _called(maker, name, "optimizer", chosen, options)
    return optimizer


def create_scheduler_from_config(scheduler_config: Mapping[str, Any], optimizer: Optimizer) -> LRScheduler:
    """`{"type": ..., "config": {...}}` -> InverseLR, or a schedule of torch."""
    name, options = _node(scheduler_config, "scheduler")
    classes = {n: c for n, c in vars(torch.optim.lr_scheduler).items() if inspect.isclass(c)}
    known: dict[str, Any] = {n: c for n, c in classes.items() if issubclass(c, LRScheduler) and c is not LRScheduler}
    known["InverseLR"] = InverseLR
    if name not in known:
        raise ConfigError(f"scheduler.type: no schedule named {name!r}; {nearest(name, known)}")
    scheduler: LRScheduler = _called(known[name], name, "scheduler", optimizer, options)
    return scheduler


def resolve_optimizer(
    configs: Mapping[str, Any] | None, name: str, lr: float | None, default: str, **options: Any
) -> dict[str, Any]:
    """The entry of one network in `optimizer_configs`, or `default` at `learning_rate`."""
    if configs is None:
        if lr is None:
            raise ConfigError("training: give learning_rate, or optimizer_configs")
        return {"optimizer": {"type": default, "config": {"lr": lr, **options}}}
    if name not in configs:
        raise ConfigError(f"training.optimizer_configs: has no entry {name!r}; found {', '.join(configs) or 'none'}")
    if lr is not None:
        logger.warning("training.learning_rate: has no effect, optimizer_configs is given")
    return dict(configs[name])


def configure_optimizer(config: Mapping[str, Any], module: nn.Module) -> Any:
    """What a LightningModule's `configure_optimizers` returns for one network; schedules advance every step."""
    optimizer = create_optimizer_from_config(config["optimizer"], module)
    if "scheduler" not in config:
        return optimizer
    scheduler = create_scheduler_from_config(config["scheduler"], optimizer)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def _node(node: Mapping[str, Any], what: str, extra: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    unknown = [key for key in node if key not in ("type", "config", *extra)]
    if unknown:
        raise ConfigError(f"{what}.{unknown[0]}: unknown key; {nearest(unknown[0], ('type', 'config', *extra))}")
    if not isinstance(node.get("type"), str):
        raise ConfigError(f"{what}.type: missing; it names the {what}")
    return node["type"], dict(node.get("config") or {})


def _optimizer_class(name: str) -> Any:
    if name == "FusedAdam":
        return require("deepspeed.ops.adam").FusedAdam
    known = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, Optimizer)}
    if name in known and name != "Optimizer":
        return known[name]
    if name.endswith("8bit"):
        library = require("bitsandbytes").optim
        if hasattr(library, name):
            return getattr(library, name)
    raise ConfigError(f"optimizer.type: no optimiser named {name!r}; {nearest(name, known)}")


def _grouped(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Each parameter goes to the first group whose pattern its name matches; the rest form a group of their own."""
    left = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not left:
        raise ConfigError("optimizer: nothing to train, every parameter is frozen")
    if not groups:
        return list(left.values())
    made: list[dict[str, Any]] = []
    for group in groups:
        pattern = group["match"]
        names = [name for name in left if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            examples = ", ".join(list(left)[:3])
            raise ConfigError(f"optimizer.groups: {pattern!r} matches no parameter; names look like {examples}")
        made.append({"params": [left.pop(name) for name in names], **{k: v for k, v in group.items() if k != "match"}})
    return [*made, {"params": list(left.values())}] if left else made


def _called(maker: Any, name: str, what: str, first: Any, options: dict[str, Any]) -> Any:
    accepted = inspect.signature(maker).parameters
    unknown = [key for key in options if key not in accepted]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        raise ConfigError(f"{what}.config.{unknown[0]}: {name} has no such option; {nearest(unknown[0], accepted)}")
    try:
        return maker(first, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}.config: {name} refuses it ({error})") from error
