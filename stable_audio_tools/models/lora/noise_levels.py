"""Adapters that act at some noise levels alone: early steps of sampling settle the structure, late ones the detail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from stable_audio_tools.models.lora.adapter import adapted_layers
from stable_audio_tools.models.lora.factors import Control


class NoiseIntervals:
    """The adapters of a backbone that have an interval, for one sampling run."""

    def __init__(self, model: Any) -> None:
        layers = adapted_layers(model).values() if hasattr(model, "named_modules") else ()
        controls = {id(factors.control): factors.control for layer in layers for factors in layer.factors()}
        self._controls = [control for control in controls.values() if control.interval is not None]

    @contextmanager
    def at(self, level: Tensor) -> Iterator[tuple[bool, ...]]:
        """Inside, each adapter acts or not as the level (b,) of the batch's first item says; yields which do."""
        if not self._controls:
            yield ()
            return
        acting = tuple(_covers(control, level) for control in self._controls)
        try:
            for control, acts in zip(self._controls, acting):
                control.in_interval = acts
            yield acting
        finally:
            for control in self._controls:
                control.in_interval = True


def _covers(control: Control, level: Tensor) -> bool:
    assert control.interval is not None
    low, high = level.new_tensor(control.interval)  # rounded as the level is, so that an equal one is within
    return bool(low <= level[0] <= high)
