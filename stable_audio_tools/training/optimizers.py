"""Optimisers and learning-rate schedules by name, as `optimizer_configs` has them:

    {"optimizer": {"type": "AdamW", "config": {"lr": 5e-5}, "param_groups": [{"pattern": "*.bias", "weight_decay": 0}]},
     "scheduler": {"type": "InverseLR", "config": {"inv_gamma": 1000000, "power": 0.5, "warmup": 0.99}}}

Types are the classes of `torch.optim` and `torch.optim.lr_scheduler`, `InverseLR`, `WarmupLR`, `Muon` (matrices; AdamW
for the rest), those of `optims`, DeepSpeed's `FusedAdam`, and those of bitsandbytes (`AdamW8bit`, ...), of schedulefree
(`AdamWScheduleFree`, `RAdamScheduleFree`, `SGDScheduleFree`) and of prodigyopt (`Prodigy`).

A pattern is a shell-style glob over parameter names; the first one that matches a parameter takes it, and its group
overrides the optimiser's config.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stable_audio_tools.core.config.sentences import nearest, show
from stable_audio_tools.core.errors import ConfigError, explained
from stable_audio_tools.core.packages import require
from stable_audio_tools.training import optims
from stable_audio_tools.training.optims import Group

logger = logging.getLogger(__name__)

T = TypeVar("T")

Named = tuple[str, Tensor]
Entry = Tensor | Named | Group
Parameters = nn.Module | Iterable[Entry]
Node = Mapping[str, Any]  # an object of the JSON config

_QUANTISED = ("AdamW8bit", "Adam8bit", "Lion8bit", "PagedAdamW8bit", "PagedAdam8bit", "PagedLion8bit", "SGD8bit")
_SCHEDULE_FREE = ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree")
_OPTIMIZER_KEYS = ("type", "config", "param_groups")
_SCHEDULER_KEYS = ("type", "config", "interval", "frequency", "monitor")


class InverseLR(LRScheduler):
    """lr = (1 - warmup^(k + 1)) max(final_lr, base (1 + k / inv_gamma)^-power) after k steps."""

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
            raise ValueError(f"warmup must be at least 0 and less than 1, got {warmup:g}")
        if inv_gamma <= 0:
            raise ValueError(f"inv_gamma must be above 0, got {inv_gamma:g}")
        self.inv_gamma, self.power, self.warmup, self.final_lr = inv_gamma, power, warmup, final_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        step = self.last_epoch
        rise = 1 - self.warmup ** (step + 1)
        fall = (1 + step / self.inv_gamma) ** -self.power
        return [rise * max(self.final_lr, base * fall) for base in self.base_lrs]


class WarmupLR(LRScheduler):
    """The learning rate rises linearly over `warmup_steps`, then falls to 0 at `total_steps` along `shape`."""

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        total_steps: int | None = None,
        shape: Literal["constant", "linear", "cosine"] = "constant",
        last_epoch: int = -1,
    ) -> None:
        if shape not in ("constant", "linear", "cosine"):
            raise ValueError(f"shape must be constant, linear or cosine, got {shape!r}")
        if shape != "constant" and (total_steps is None or total_steps <= warmup_steps):
            raise ValueError(f"total_steps must be more than warmup_steps, {warmup_steps}, got {total_steps}")
        self.warmup_steps, self.total_steps, self.shape = warmup_steps, total_steps, shape
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        step, scale = self.last_epoch, 1.0
        if step < self.warmup_steps:
            scale = step / self.warmup_steps
        elif self.shape != "constant" and self.total_steps is not None:
            progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
            scale = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return [scale * base for base in self.base_lrs]


class Timing(NamedTuple):
    """The times at which a schedule changes the rate."""

    interval: str  # "step" (of its optimiser) or "epoch"
    frequency: int
    monitor: str  # the value that ReduceLROnPlateau looks at

    @classmethod
    def of(cls, config: Node) -> "Timing":
        """Read the timing of a `scheduler` node."""
        config = _mapping(config, "scheduler")
        interval, frequency = config.get("interval", "step"), config.get("frequency", 1)
        if interval not in ("step", "epoch"):
            raise ConfigError(f"scheduler.interval: expected 'step' or 'epoch', got {show(interval)}")
        if not isinstance(frequency, int) or isinstance(frequency, bool) or frequency < 1:
            raise ConfigError(f"scheduler.frequency: expected a whole number of at least 1, got {show(frequency)}")
        monitor = config.get("monitor", "")
        if config.get("type") == "ReduceLROnPlateau" and not monitor:
            raise ConfigError(
                "scheduler.monitor: missing; ReduceLROnPlateau needs the name of a value, as 'val/avg_loss'"
            )
        return cls(interval, frequency, str(monitor))


def resolve_optimizer(
    configs: Node | None, name: str, learning_rate: float | None, default: str, **default_config: object
) -> Node:
    """Return the optimiser (and scheduler) of `name`, or the default optimiser at `learning_rate`."""
    if configs is None:
        if learning_rate is None:
            raise ConfigError("training: give learning_rate, or optimizer_configs")
        return {"optimizer": {"type": default, "config": {"lr": learning_rate, **default_config}}}
    if learning_rate is not None:
        logger.warning("training.learning_rate is ignored: optimizer_configs sets the rates")
    return optimizer_entry(configs, name)


def optimizer_entry(configs: Node, name: str) -> Node:
    """Return the entry of one network in `optimizer_configs`, which holds an 'optimizer' and perhaps a 'scheduler'."""
    chosen = _mapping(configs, "training.optimizer_configs").get(name)
    if not isinstance(chosen, Mapping) or "optimizer" not in chosen:
        found = f"it has {', '.join(map(str, configs))}" if configs else "it is empty"
        raise ConfigError(f"training.optimizer_configs needs an entry {name!r} with an 'optimizer'; {found}")
    return dict(chosen)


def configure_optimizer(config: Node, module: nn.Module) -> OptimizerLRScheduler:
    """Build the optimiser, and the schedule that follows its steps, for `configure_optimizers` of a LightningModule."""
    optimizer = create_optimizer_from_config(config["optimizer"], module)
    node = config.get("scheduler")
    if node is None:
        return optimizer
    timing = Timing.of(node)
    schedule: LRSchedulerConfigType = {
        "scheduler": create_scheduler_from_config(node, optimizer),
        "interval": timing.interval,
        "frequency": timing.frequency,
    }
    if timing.monitor:
        schedule["monitor"] = timing.monitor
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def create_optimizer_from_config(optimizer_config: Node, parameters: Parameters) -> Optimizer:
    """Build the optimiser of a `{"type", "config", "param_groups"}` node for the trainable parameters of a module."""
    _check_keys(optimizer_config, _OPTIMIZER_KEYS, "optimizer")
    kind = _optimizer_class(optimizer_config["type"])
    options = dict(_mapping(optimizer_config.get("config") or {}, "optimizer.config"))
    _check_options(kind, options, "optimizer", first="params")
    overrides = optimizer_config.get("param_groups") or ()
    if not isinstance(overrides, list | tuple):
        raise ConfigError(f"optimizer.param_groups: expected a list, got {show(overrides)}")
    groups: Sequence[Entry]
    if not issubclass(kind, optims.MuonAdamW):
        groups = _group(_listed(parameters), overrides)
        if kind is optims.Muon:
            modules = parameters.modules() if isinstance(parameters, nn.Module) else ()
            groups = optims.matrices_apart(groups, {id(m.weight) for m in modules if isinstance(m, nn.Embedding)})
    elif overrides:
        raise ConfigError("optimizer.param_groups: MuonAdamW makes its own groups; remove the key")
    else:
        groups = _listed(parameters)
    for group in groups:
        if isinstance(group, dict):
            _check_options(kind, {key: group[key] for key in group if key != "params"}, "param_groups", first="params")
    return _call(kind, "optimizer", groups, _fused_on_cpu(kind, groups, options))


def create_scheduler_from_config(scheduler_config: Node, optimizer: Optimizer) -> LRScheduler:
    """Build the schedule of a `{"type", "config"}` node."""
    _check_keys(scheduler_config, _SCHEDULER_KEYS, "scheduler")
    known = {**_classes(torch.optim.lr_scheduler, LRScheduler), "InverseLR": InverseLR, "WarmupLR": WarmupLR}
    name = scheduler_config["type"]
    kind = known.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"scheduler.type: no schedule named {show(name)}; {nearest(str(name), known)}")
    options = dict(_mapping(scheduler_config.get("config") or {}, "scheduler.config"))
    _check_options(kind, options, "scheduler", first="optimizer")
    return _call(kind, "scheduler", optimizer, options)


def _optimizer_class(name: object) -> type[Optimizer]:
    packages = {**dict.fromkeys(_SCHEDULE_FREE, "schedulefree"), "Prodigy": "prodigyopt"}
    if isinstance(name, str) and name in packages:
        return _classes(require(packages[name], extra="optimizers"), Optimizer)[name]
    if name == "FusedAdam":
        return _classes(require("deepspeed.ops.adam"), Optimizer)["FusedAdam"]
    # Muon of this package hides that of torch, which takes matrices alone.
    known = {**_classes(torch.optim, Optimizer), **_classes(optims, Optimizer)}
    if isinstance(name, str) and name in known:
        return known[name]
    if isinstance(name, str) and (name.endswith(("8bit", "32bit")) or name.startswith("Paged")):
        quantised = _classes(require("bitsandbytes").optim, Optimizer)
        if name in quantised:
            return quantised[name]
        known = quantised
    names = {*known, *_QUANTISED, *packages, "FusedAdam", "Muon"}
    raise ConfigError(f"optimizer.type: no optimiser named {show(name)}; {nearest(str(name), names)}")


def _classes(module: ModuleType, base: type[T]) -> dict[str, type[T]]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


def _mapping(value: object, where: str) -> Node:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected an object, got {show(value)}")
    return value


def _check_keys(node: object, known: tuple[str, ...], where: str) -> None:
    for key in _mapping(node, where):
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    if "type" not in _mapping(node, where):
        raise ConfigError(f"{where}.type: missing; it names the class, for instance 'AdamW' or 'InverseLR'")


def _check_options(kind: type[object], options: Iterable[str], where: str, first: str) -> None:
    parameters = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name != first]
    for name in options:
        if name not in known:
            raise ConfigError(f"{where}: {kind.__name__} has no option {name!r}; {nearest(name, known)}")


def _call(kind: Callable[..., T], where: str, first: object, options: Node) -> T:
    # JSON has lists where torch expects tuples (betas).
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    with explained(f"{where} {kind.__name__}"):
        return kind(first, **values)


def _fused_on_cpu(kind: type[Optimizer], groups: Sequence[Entry], options: Group) -> Group:
    """Add torch's one-pass step to the options if a loop over tensors is the default: it takes a fifth of the time."""
    known = inspect.signature(kind).parameters
    apart = [group for group in groups if isinstance(group, dict)]
    chosen = {"fused", "foreach", "differentiable"} & {*options, *(key for group in apart for key in group)}
    if "fused" not in known or chosen:
        return options
    tensors = [tensor for group in groups for tensor in (group["params"] if isinstance(group, dict) else [group])]
    # Not every optimiser has that step for tensors that are divided among processes.
    on_cpu = all(
        isinstance(t, Tensor) and not isinstance(t, DTensor) and t.device.type == "cpu" and t.is_floating_point()
        for t in tensors
    )
    return {**options, "fused": True} if on_cpu else options


def _listed(parameters: Parameters) -> list[Entry]:
    if not isinstance(parameters, nn.Module):
        return list(parameters)
    trainable: list[Entry] = [(name, p) for name, p in parameters.named_parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("nothing to train: all parameters are frozen; see requires_grad in the model config")
    return trainable


def _group(parameters: Sequence[Entry], overrides: Sequence[object]) -> list[Tensor | Group]:
    """Sort parameters into groups for the optimiser; without overrides return them without their names."""
    named = [entry for entry in parameters if isinstance(entry, tuple)]
    if not overrides:
        return [entry[1] if isinstance(entry, tuple) else entry for entry in parameters]
    if len(named) != len(parameters):
        raise ConfigError("param_groups select by name; give the module or its named_parameters()")
    left = dict(named)
    groups: list[Tensor | Group] = []
    for index, override in enumerate(overrides):
        options = dict(_mapping(override, f"param_groups[{index}]"))
        pattern = options.pop("pattern", None)
        if not isinstance(pattern, str):
            raise ConfigError(f"param_groups[{index}].pattern: missing; it is a glob over parameter names")
        taken = [name for name in left if fnmatchcase(name, pattern)]
        if not taken:
            earlier = any(fnmatchcase(name, pattern) for name, _ in named)
            raise ConfigError(
                f"param_groups[{index}].pattern: {pattern!r} matches no trainable parameter"
                + (" that earlier patterns left" if earlier else "")
                + f"; names are like {', '.join(name for name, _ in named[:3])}"
            )
        groups.append({"params": [left.pop(name) for name in taken], **options})
    return [{"params": list(left.values())}, *groups] if left else groups
