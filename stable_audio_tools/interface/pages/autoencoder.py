"""Audio through an autoencoder and back; one that decodes by diffusion has steps."""

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import SEED, Control, Group, control_of
from stable_audio_tools.interface.pages.page import Page

_STEPS = 100


def page(model: AudioModel) -> Page:
    """The page of an autoencoder."""
    steps = (control_of("steps", _STEPS),) if model.facts.has_steps else ()
    groups = (Group((Control("init_audio", "audio", "Audio"),)), Group((*steps, SEED), "Settings"))

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        if values["init_audio"] is None:
            raise ValueError("there is no audio to pass through the autoencoder; upload or record some")
        return dict(values)

    return Page("Reconstruct", "Encode and decode", "process", groups, request, shows_source=True)
