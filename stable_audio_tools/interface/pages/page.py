"""What every page consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stable_audio_tools.interface.controls import Control, Group


@dataclass(frozen=True)
class Page:
    """`request` turns what the controls hold, by name, into keywords of `AudioModel.generate`."""

    title: str
    action: str  # what the button says
    api_name: str
    groups: tuple[Group, ...]
    request: Callable[[Mapping[str, Any]], dict[str, Any]]
    shows_source: bool = False  # a picture of the audio that went in, beside that of what came out
    keeps_level: bool = False  # what peaks above full scale is cut off there, so that the rest stays as it was

    @property
    def controls(self) -> list[Control]:
        return [control for group in self.groups for control in group.controls]
