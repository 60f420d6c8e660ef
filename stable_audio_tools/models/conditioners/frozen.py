"""Frozen encoders of conditioners: loaded when first used, shared within the process, and kept out of state dicts."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import nn

from stable_audio_tools.core.devices import indexed

Result = TypeVar("Result")

_SHARED: WeakValueDictionary[tuple[Hashable, torch.device, torch.dtype], nn.Module] = WeakValueDictionary()


class FrozenEncoder:
    """An encoder outside its owner's module tree; copies of the owner share it."""

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self._key: tuple[Hashable, torch.device, torch.dtype] | None = None

    def on(self, name: Hashable, device: torch.device, dtype: torch.dtype, load: Callable[[], nn.Module]) -> nn.Module:
        """Return the encoder on a device; `load` reads it from disk where no part of the process holds it."""
        device = indexed(device)
        if self.module is None or self._key != (name, device, dtype):
            key = (name, device, dtype)
            shared = _SHARED.get(key)
            if shared is None:
                shared = _SHARED[key] = load().requires_grad_(False)
            self.module, self._key = shared, key
        return self.move(device)

    def move(self, device: torch.device) -> nn.Module:
        """Move the encoder, for all that share it; they move it back when they need it."""
        assert self.module is not None
        if _device_of(self.module) != indexed(device):
            self.module.to(device)
        return self.module

    def follow(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Go where a function of `nn.Module._apply` moves tensors of this device."""
        if self.module is not None:
            self.move(function(torch.empty(0, device=_device_of(self.module))).device)

    def __deepcopy__(self, memo: dict[int, object]) -> "FrozenEncoder":
        return self

    def __getstate__(self) -> dict[str, object]:
        return {"module": None, "_key": None}


class RecentResults(Generic[Result]):
    """The last results of a frozen encoder, so that a prompt is encoded once for many calls, windows and batches.

    The key of a result names everything the result depends on, including the other texts of its batch, so a kept result
    equals a new pass. Nothing is kept while gradients are recorded.
    """

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self._results: OrderedDict[Hashable, Result] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """Return the kept result of a key, or compute it."""
        if torch.is_grad_enabled():
            return compute()
        if key not in self._results:
            self._results[key] = compute()
            if len(self._results) > self.size:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        return self._results[key]

    def __deepcopy__(self, memo: dict[int, object]) -> "RecentResults[Result]":
        return RecentResults(self.size)

    def __getstate__(self) -> dict[str, object]:
        return {"size": self.size, "_results": OrderedDict()}


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
