"""Optimisers and learning-rate schedules by name, as `optimizer_configs` has them:

    {"optimizer": {"type": "AdamW", "config": {"lr": 5e-5}, "param_groups": [{"pattern": "*.bias", "weight_decay": 0}]},
     "scheduler": {"type": "InverseLR", "config": {"inv_gamma": 1000000, "power": 0.5, "warmup": 0.99}}}

Types are the classes of `torch.optim` and `torch.optim.lr_scheduler`, `InverseLR`, `Muon` (matrices; AdamW for the
rest), those of `optims`, DeepSpeed's `FusedAdam`, and those of bitsandbytes (`AdamW8bit`, `PagedAdamW8bit`, ...), of
schedulefree (`AdamWScheduleFree`, `RAdamScheduleFree`, `SGDScheduleFree`) and of prodigyopt (`Prodigy`).

A pattern is a shell-style glob over parameter names; the first one that matches a parameter takes it, and its group
overrides the optimiser's config.
"""

import inspect
import logging
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stable_audio_tools.core.config.sentences import nearest, show
from stable_audio_tools.core.errors import ConfigError, explained
from stable_audio_tools.core.packages import require
from stable_audio_tools.training import optims
from stable_audio_tools.training.muon import Muon, matrices_apart

logger = logging.getLogger(__name__)

Parameters = nn.Module | Iterable[Any]  # a module, or parameters, pairs (name, parameter), groups

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


class Timing(NamedTuple):
    """When a schedule goes on."""

    interval: str  # "step" (of its optimiser) or "epoch"
    frequency: int
    monitor: str  # the value that ReduceLROnPlateau looks at

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Timing":
        """The timing in a `scheduler` node."""
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
    configs: Mapping[str, Any] | None, name: str, learning_rate: float | None, default: str, **default_config: Any
) -> dict[str, Any]:
    """The optimiser (and scheduler) of `name`, or the default optimiser at `learning_rate`."""
    if configs is None:
        if learning_rate is None:
            raise ConfigError("training: give learning_rate, or optimizer_configs")
        return {"optimizer": {"type": default, "config": {"lr": learning_rate, **default_config}}}
    if learning_rate is not None:
        logger.warning("training.learning_rate is ignored: optimizer_configs tells the rates")
    return optimizer_entry(configs, name)


def optimizer_entry(configs: Any, name: str) -> dict[str, Any]:
    """Return the entry of one network in `optimizer_configs`, which holds an 'optimizer' and perhaps a 'scheduler'."""
    chosen = _mapping(configs, "training.optimizer_configs").get(name)
    if not isinstance(chosen, Mapping) or "optimizer" not in chosen:
        found = f"it has {', '.join(map(str, configs))}" if configs else "it is empty"
        raise ConfigError(f"training.optimizer_configs needs an entry {name!r} with an 'optimizer'; {found}")
    return dict(chosen)


def configure_optimizer(config: Mapping[str, Any], module: nn.Module) -> Any:
    """What a LightningModule's `configure_optimizers` returns: the schedule goes on with every optimiser step."""
    optimizer = create_optimizer_from_config(config["optimizer"], module)
    node = config.get("scheduler")
    if node is None:
        return optimizer
    timing = Timing.of(node)
    schedule = {"scheduler": create_scheduler_from_config(node, optimizer), **timing._asdict()}
    if not timing.monitor:
        del schedule["monitor"]
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def create_optimizer_from_config(optimizer_config: Mapping[str, Any], parameters: Parameters) -> Optimizer:
    """The optimiser of a `{"type", "config", "param_groups"}` node; of a module it gets what is trainable."""
    _check_keys(optimizer_config, _OPTIMIZER_KEYS, "optimizer")
    kind = _optimizer_class(optimizer_config["type"])
    options = dict(_mapping(optimizer_config.get("config") or {}, "optimizer.config"))
    _check_options(kind, options, "optimizer", first="params")
    overrides = optimizer_config.get("param_groups") or ()
    if not isinstance(overrides, list | tuple):
        raise ConfigError(f"optimizer.param_groups: expected a list, got {show(overrides)}")
    groups = _listed(parameters) if _takes_names(kind, overrides) else _group(_listed(parameters), overrides)
    if kind is Muon:
        modules = parameters.modules() if isinstance(parameters, nn.Module) else ()
        groups = matrices_apart(groups, {id(m.weight) for m in modules if isinstance(m, nn.Embedding)})
    for group in groups:
        if isinstance(group, Mapping):
            _check_options(kind, {key: group[key] for key in group if key != "params"}, "param_groups", first="params")
    optimizer: Optimizer = _call(kind, "optimizer", groups, _fused_on_cpu(kind, groups, options))
    return optimizer


def create_scheduler_from_config(scheduler_config: Mapping[str, Any], optimizer: Optimizer) -> LRScheduler:
    """The schedule of a `{"type", "config"}` node."""
    _check_keys(scheduler_config, _SCHEDULER_KEYS, "scheduler")
    known: dict[str, type[Any]] = {**_classes(torch.optim.lr_scheduler, LRScheduler), "InverseLR": InverseLR}
    given = scheduler_config["type"]
    kind = known.get(given) if isinstance(given, str) else None
    if kind is None:
        raise ConfigError(f"scheduler.type: no schedule named {show(given)}; {nearest(str(given), known)}")
    options = dict(_mapping(scheduler_config.get("config") or {}, "scheduler.config"))
    _check_options(kind, options, "scheduler", first="optimizer")
    schedule: LRScheduler = _call(kind, "scheduler", optimizer, options)
    return schedule


def _takes_names(kind: type[Any], overrides: Any) -> bool:
    """Whether an optimiser splits the parameters into groups itself, by their names and axes."""
    if not issubclass(kind, optims.MuonAdamW):
        return False
    if overrides:
        raise ConfigError("optimizer.param_groups: MuonAdamW makes its own groups; remove the key")
    return True


def _optimizer_class(name: Any) -> type[Any]:
    if name == "Muon":  # torch's own class of this name takes matrices alone
        return Muon
    if name in _SCHEDULE_FREE:
        schedule_free: type[Any] = getattr(require("schedulefree", extra="optimizers"), name)
        return schedule_free
    if name == "Prodigy":
        prodigy: type[Any] = require("prodigyopt", extra="optimizers").Prodigy
        return prodigy
    if name == "FusedAdam":
        fused: type[Any] = require("deepspeed.ops.adam").FusedAdam
        return fused
    known = {**_classes(torch.optim, Optimizer), **_classes(optims, Optimizer)}
    if isinstance(name, str) and name in known:
        return known[name]
    if isinstance(name, str) and (name.endswith(("8bit", "32bit")) or name.startswith("Paged")):
        quantised = _classes(require("bitsandbytes").optim, Optimizer)
        if name in quantised:
            return quantised[name]
        known = quantised
    names = {*known, *_QUANTISED, *_SCHEDULE_FREE, "FusedAdam", "Muon", "Prodigy"}
    raise ConfigError(f"optimizer.type: no optimiser named {show(name)}; {nearest(str(name), names)}")


def _classes(module: Any, base: type[Any]) -> dict[str, type[Any]]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected an object, got {show(value)}")
    return value


def _check_keys(node: Any, known: tuple[str, ...], where: str) -> None:
    for key in _mapping(node, where):
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    if "type" not in node:
        raise ConfigError(f"{where}.type: missing; it names the class, for instance 'AdamW' or 'InverseLR'")


def _check_options(kind: type[Any], options: Mapping[str, Any], where: str, first: str) -> None:
    parameters = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name != first]
    for name in options:
        if name not in known:
            raise ConfigError(f"{where}: {kind.__name__} has no option {name!r}; {nearest(name, known)}")


def _call(kind: type[Any], where: str, first: Any, options: Mapping[str, Any]) -> Any:
    # JSON has lists where torch wants tuples (betas).
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    with explained(f"{where} {kind.__name__}"):
        return kind(first, **values)


def _fused_on_cpu(kind: type[Any], groups: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options, with torch's one-pass step where a loop over tensors is its default: a fifth of the time."""
    known = inspect.signature(kind).parameters
    chosen = {"fused", "foreach", "differentiable"} & {
        *options,
        *(key for group in groups if isinstance(group, dict) for key in group),
    }
    if "fused" not in known or chosen:
        return options
    tensors = [tensor for group in groups for tensor in (group["params"] if isinstance(group, dict) else [group])]
    # Not every optimiser has that step for tensors that are divided among processes.
    on_cpu = all(
        isinstance(t, Tensor) and not isinstance(t, DTensor) and t.device.type == "cpu" and t.is_floating_point()
        for t in tensors
    )
    return {**options, "fused": True} if on_cpu else options


def _listed(parameters: Parameters) -> list[Any]:
    if not isinstance(parameters, nn.Module):
        return list(parameters)
    trainable = [(name, parameter) for name, parameter in parameters.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("nothing to train: all parameters are frozen; see requires_grad in the model config")
    return trainable


def _group(parameters: list[Any], overrides: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Groups for the optimiser; without overrides the parameters themselves."""
    named = [entry for entry in parameters if isinstance(entry, tuple)]
    if not overrides:
        return [entry[1] if isinstance(entry, tuple) else entry for entry in parameters]
    if len(named) != len(parameters):
        raise ConfigError("param_groups select by name; give the module or its named_parameters()")
    left: dict[str, Any] = dict(named)
    groups: list[dict[str, Any]] = []
    for index, override in enumerate(overrides):
        pattern = _mapping(override, f"param_groups[{index}]").get("pattern")
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
        options = {key: value for key, value in override.items() if key != "pattern"}
        groups.append({"params": [left.pop(name) for name in taken], **options})
    return [{"params": list(left.values())}, *groups] if left else groups
