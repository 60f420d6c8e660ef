"""Audio of any length, of which some spans are made anew, or that is continued."""

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import parse_spans
from stable_audio_tools.interface.controls import Control, Group, request_from
from stable_audio_tools.interface.pages.page import Page
from stable_audio_tools.interface.pages.text_to_audio import main_groups
from stable_audio_tools.interface.uploads import LONGEST_SECONDS


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
            Control(
                "continue_seconds",
                "number",
                "Continue by (seconds)",
                0,
                0,
                LONGEST_SECONDS,
                info="Without spans. 0: to the end of the model's window; by half a window where the audio fills it.",
            ),
        )
    )

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        if values["inpaint_audio"] is None:
            raise ValueError("there is no audio to work on; upload some, or take one of your earlier runs")
        rate, clip = values["inpaint_audio"]
        return _edit(
            request_from(model, values),
            values["inpaint_audio"],
            parse_spans(values["spans"]),
            float(values.get("continue_seconds") or 0),
            clip.shape[-1] / rate,
            model.facts.window_seconds,
        )

    return Page(
        "Inpaint", "Inpaint", "inpaint", (own, *main_groups(model)), request, shows_source=True, keeps_level=True
    )


def _edit(
    asked: dict[str, Any], audio: Any, spans: list[Any], more: float, length: float, window: float
) -> dict[str, Any]:
    """Keywords for one window, or for audio beyond it, whose length is then that of the audio."""
    whole = {name: value for name, value in asked.items() if name not in ("clip_length", "seconds")}
    if spans:
        own = whole if length > window else asked
        return own | {"inpaint_audio": audio, "inpaint": spans}
    if more == 0 and length < window:
        return asked | {"inpaint_audio": audio}
    wanted = length + (more or window / 2)
    if wanted <= window:
        return whole | {"inpaint_audio": audio, "clip_length": wanted}
    overlap = {"overlap": length} if length < window / 4 else {}
    return whole | {"mode": "outpaint", "audio": audio, "seconds": wanted, **overlap}
