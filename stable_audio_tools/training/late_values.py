"""Values of the device that are read a step later, when reading them makes nobody wait."""

import torch
from torch import Tensor


class LateValue:
    """A small tensor on its way to the host."""

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            value = value.to("cpu", non_blocking=True)  # into pinned memory
            self._event = torch.cuda.Event()
            self._event.record()
        self._value = value

    @property
    def at_hand(self) -> bool:
        """Can it be read at once, as on a CPU?"""
        return self._event is None

    def read(self) -> Tensor:
        """The value. A step later it has arrived, unless the host is a whole step ahead of the device."""
        if self._event is not None:
            self._event.synchronize()
        return self._value
