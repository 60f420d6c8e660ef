"""Exponential moving average of a module's trained weights.

Only what can change is kept: trainable parameters and floating-point buffers. Averages are never of less than float32:
in bfloat16 the steps of a decay near 1 would round to nothing. State-dict names are those of published checkpoints,
`ema_model.<name>`, `initted` and `step`, so theirs load here and ours load there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

_ONLINE_COPY = "online_model."  # older files store the online weights a second time


class WeightAverage(nn.Module):
    """average <- decay average + (1 - decay) online, with decay = min(beta, 1 - (1 + step / inv_gamma)^-power)."""

    def __init__(
        self,
        model: nn.Module,
        beta: float = 0.9999,
        power: float = 3 / 4,
        inv_gamma: float = 1.0,
        update_every: int = 1,
        update_after_step: int = 1,
        start: nn.Module | None = None,
    ) -> None:
        """`start`: a model of the same shape whose weights the averages have until the first update."""
        super().__init__()
        self.beta, self.power, self.inv_gamma = beta, power, inv_gamma
        self.update_every, self.update_after_step = update_every, update_after_step
        self.step = 0
        self.started = False
        self._model = (model,)  # not a submodule: its tensors are in the state dict once
        self._online: dict[str, Tensor] = {}
        first = {} if start is None else start.state_dict()
        self._averages = {
            name: _float32(first.get(name, tensor).detach()).clone() for name, tensor in self._followed().items()
        }
        self._known = set(model.state_dict())

    @property
    def decay(self) -> float:
        """The share of the average that remains after the next update."""
        epoch = max(self.step - self.update_after_step - 1, 0)
        return min(max(1 - (1 + epoch / self.inv_gamma) ** -self.power, 0.0), self.beta) if epoch else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Take one step after the optimiser's."""
        step, self.step = self.step, self.step + 1
        copies = not self.started or step <= self.update_after_step
        if not self.started or step % self.update_every == 0:
            self._follow(weight=1.0 if copies else 1 - self.decay)
        self.started = True

    def _followed(self) -> dict[str, Tensor]:
        """Return the tensors of the model that are averaged; moving a module replaces its buffers."""
        if not self._online:
            self._online = _followed(self._model[0])
        return self._online

    def _follow(self, weight: float) -> None:
        followed = {name: _own_part(tensor) for name, tensor in self._followed().items()}
        averages, online = [_own_part(self._averages[name]) for name in followed], list(followed.values())
        if averages and averages[0].device != online[0].device:
            self._averages = {name: t.to(followed[name].device) for name, t in self._averages.items()}
            averages = [self._averages[name] for name in followed]
        same = [(a, o) for a, o in zip(averages, online) if a.dtype == o.dtype]
        if same:
            torch._foreach_lerp_([a for a, _ in same], [o for _, o in same], weight)
        for average, tensor in zip(averages, online):
            if average.dtype != tensor.dtype:
                average.lerp_(tensor.to(average.dtype), weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the averages into the model inside the block, and restore its own weights afterwards.

        Tensors are copied only if their types differ.
        """
        own = {}
        for name, online in self._followed().items():
            if isinstance(online, DTensor):  # what gathers the parts holds on to their memory
                own[name] = _own_part(online).clone()
                _own_part(online).copy_(_own_part(self._averages[name]))
            else:
                own[name], online.data = online.data, self._averages[name].to(online)
        self._forget_gathered()
        try:
            yield
        finally:
            for name, online in self._followed().items():
                if isinstance(online, DTensor):
                    _own_part(online).copy_(own[name])
                else:
                    online.data = own[name].to(online.device)
            self._forget_gathered()

    def divide(self) -> None:
        """Divide the averages as the weights are divided: each process keeps its part."""
        self._online = {}
        for name, online in self._followed().items():
            if isinstance(online, DTensor):
                whole = self._averages[name].to(online.device)
                self._averages[name] = distribute_tensor(
                    whole, online.device_mesh, online.placements, src_data_rank=None
                )

    def _forget_gathered(self) -> None:
        for module in self._model[0].modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def averaged_state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the model's own names."""
        return dict(self._averages)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WeightAverage":
        device = (
            fn(torch.empty(0, device=next(iter(self._averages.values())).device)).device if self._averages else None
        )
        self._averages = {name: tensor.to(device) for name, tensor in self._averages.items()}  # whatever the new type
        self._online = {}
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}initted"] = torch.tensor([float(self.started)])
        destination[f"{prefix}step"] = torch.tensor([self.step])
        for name, tensor in self._averages.items():
            destination[f"{prefix}ema_model.{name}"] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: object,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        for name, tensor in self._averages.items():
            stored = given.pop(f"ema_model.{name}", None)
            if stored is None:
                missing_keys.append(f"{prefix}ema_model.{name}")
            elif stored.shape != tensor.shape:
                error_msgs.append(
                    f"{prefix}ema_model.{name}: shape {tuple(stored.shape)}, expected {tuple(tensor.shape)}"
                )
            else:
                tensor.copy_(stored)
        # Stored as shape [1] or as a scalar, by age of the file.
        self.step = int(given.pop("step", torch.tensor(self.step)).item())
        self.started = bool(given.pop("initted", torch.tensor(self.started)).item())
        frozen = {f"ema_model.{name}" for name in self._known}
        leftovers = [key for key in given if key not in frozen and not key.startswith(_ONLINE_COPY)]
        unexpected_keys.extend(f"{prefix}{key}" for key in leftovers)


def _followed(model: nn.Module) -> dict[str, Tensor]:
    stored = set(model.state_dict())
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors.update({name: b for name, b in model.named_buffers() if name in stored and b.is_floating_point()})
    return tensors


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _own_part(tensor: Tensor) -> Tensor:
    """Return the values that this process holds."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()
