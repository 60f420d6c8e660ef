"""Keys and values kept from one call to the next."""

from typing import NamedTuple

import torch
from torch import Tensor


class KeyValue(NamedTuple):
    """Keys and values ready for attention, (b, h, n, d)."""

    key: Tensor
    value: Tensor

    def first(self, items: int) -> "KeyValue":
        """Return the keys and values of the first items of the batch."""
        return KeyValue(self.key[:items], self.value[:items])


class LayerCache:
    """One layer's past, stored for `capacity` positions; the storage doubles when it is full."""

    def __init__(self, capacity: int = 0) -> None:
        self.length = 0
        self.capacity = capacity
        self._stored: KeyValue | None = None

    @torch.compiler.disable  # a layer is compiled for any length of the past, and not for each
    def append(self, new: KeyValue) -> KeyValue:
        """Take keys and values of the next positions -> those of all positions so far."""
        end = self.length + new.key.shape[-2]
        if self._stored is None or end > self._stored.key.shape[-2]:
            self._stored = KeyValue(
                *(
                    self._grown(old, item, self.capacity if self.capacity >= end else 2 * end)
                    for old, item in zip(self._past(new), new)
                )
            )
        for stored, item in zip(self._stored, new):
            stored[..., self.length : end, :] = item
        self.length = end
        return KeyValue(*(stored[..., :end, :] for stored in self._stored))

    def _past(self, like: KeyValue) -> KeyValue:
        source = self._stored or like
        return KeyValue(*(tensor[..., : self.length, :] for tensor in source))

    @staticmethod
    def _grown(past: Tensor, like: Tensor, capacity: int) -> Tensor:
        room = like.new_empty((*like.shape[:-2], capacity, like.shape[-1]))
        room[..., : past.shape[-2], :] = past
        return room


class KeyValueCache:
    """The past of a causal transformer: give the same object to every call of one generation, without gradients.

    The first call may prepend tokens; later calls hand in the new positions only. The projected context of the first
    call serves the later ones. `capacity` positions find room from the start.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self.layers: list[LayerCache] = []
        self.context: tuple[KeyValue | None, ...] | None = None
        self.mask: Tensor | None = None  # (b, length), True where positions may be seen; None: all

    @property
    def length(self) -> int:
        """Positions seen so far, with memory and prepended tokens."""
        return self.layers[0].length if self.layers else 0

    def extend_mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Take the mask of the next positions x (b, n, d), None for all -> that of all positions so far."""
        if mask is None and self.mask is None:
            return None
        past = x.new_ones(len(x), self.length, dtype=torch.bool) if self.mask is None else self.mask
        new = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        self.mask = torch.cat([past, new], dim=1)
        return self.mask

    def prepare(self, depth: int) -> None:
        """Make room for the layers, at the first call."""
        if not self.layers:
            self.layers = [LayerCache(self.capacity) for _ in range(depth)]
        if len(self.layers) != depth:
            raise ValueError(f"this cache holds {len(self.layers)} layers, the transformer has {depth}")
        if torch.is_grad_enabled() and self.length:
            raise ValueError("a cache that is written in place cannot carry gradients: generate under torch.no_grad()")
