"""Audio of which some spans are made anew, or that is continued."""

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import Control, Group, request_from
from stable_audio_tools.interface.pages.page import Page
from stable_audio_tools.interface.pages.text_to_audio import main_groups
from stable_audio_tools.interface.waveforms import parse_spans


def page(model: AudioModel) -> Page:
    """The page of a model that inpaints."""
    own = Group(
        (
            Control("inpaint_audio", "audio", "Audio to work on"),
            Control(
                "spans",
                "spans",
                "Make anew (seconds)",
                "",
                info="Drag over the waveform, or write spans such as 0.5-1.2, 3-4. Empty: continue after the end.",
                of="inpaint_audio",
            ),
        )
    )

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        if values["inpaint_audio"] is None:
            raise ValueError("there is no audio to work on; upload some, or take one of your earlier runs")
        spans = parse_spans(values["spans"])
        return request_from(model, values) | {"inpaint_audio": values["inpaint_audio"], "inpaint": spans or None}

    return Page(
        "Inpaint", "Inpaint", "inpaint", (own, *main_groups(model)), request, shows_source=True, keeps_level=True
    )
