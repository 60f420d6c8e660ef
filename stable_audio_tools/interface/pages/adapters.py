"""The adapters of a model on each of its pages: how strongly every one of them acts."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import Control, Group
from stable_audio_tools.interface.pages.page import Page

_LOWEST, _HIGHEST = -1.0, 2.0


def with_adapters(page: Page, model: AudioModel) -> Page:
    """The page with a slider per adapter; as it is where there are none."""
    names = _control_names(list(model.adapters))
    if not names:
        return page
    sliders = [_slider(control, name, model.adapters[name].strength) for control, name in names.items()]
    sliders[0] = replace(sliders[0], info="How strongly it acts: 0 is the model without it.")

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        asked = page.request({name: value for name, value in values.items() if name not in names})
        return asked | {"lora": {name: values[control] for control, name in names.items()}}

    group = Group(tuple(sliders), "Adapters", is_open=True)
    return replace(page, groups=(*page.groups, group), request=request)


def _slider(control: str, name: str, strength: float) -> Control:
    low, high = min(_LOWEST, strength), max(_HIGHEST, strength)
    return Control(control, "slider", name, strength, low, high, 0.01)


def _control_names(adapters: list[str]) -> dict[str, str]:
    """Keywords of the HTTP API -> names of adapters."""
    names: dict[str, str] = {}
    for adapter in adapters:
        word = "lora_" + re.sub(r"\W", "_", adapter)
        names[f"{word}_{len(names) + 1}" if word in names else word] = adapter
    return names
