"""Audio of which areas of the spectrogram are made anew: some bands, for some time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.areas import keep_mask, mel_of, parse_areas
from stable_audio_tools.interface.controls import Control, Group, request_from
from stable_audio_tools.interface.pages.page import Page


def page(model: AudioModel, usual: Page) -> Page:
    """The page of a model of spectrograms; the other controls are those of its usual page, but for the variation."""
    mel = mel_of(model)
    assert mel is not None and model.facts.window is not None
    frames = model.facts.window // mel.downsampling_ratio
    own = Group(
        (
            Control("inpaint_audio", "audio", "Audio to work on"),
            Control(
                "areas",
                "areas",
                "Make anew (seconds:bands)",
                "",
                info="Draw rectangles on the spectrogram, or write areas such as 0.5-1.2:10-40, 2-3 (all bands).",
                of="inpaint_audio",
            ),
        )
    )
    left_out = ("seconds", "use_init", "init_audio", "init_noise_level")
    others = [
        replace(group, controls=tuple(control for control in group.controls if control.name not in left_out))
        for group in usual.groups
    ]

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        if values["inpaint_audio"] is None:
            raise ValueError("there is no audio to work on; upload some, or take one of your earlier runs")
        rate, clip = values["inpaint_audio"]
        if clip.shape[-1] / rate > model.facts.window_seconds + 0.01:
            length, window = clip.shape[-1] / rate, model.facts.window_seconds
            raise ValueError(f"the audio lasts {length:.2f} s, and areas are drawn on {window:.2f} s; cut it first")
        mask = keep_mask(parse_areas(values["areas"]), mel, frames)
        return request_from(model, values) | {"inpaint_audio": values["inpaint_audio"], "inpaint_bands": mask}

    return Page(
        "Spectrogram",
        "Make anew",
        "spectrogram",
        (own, *(group for group in others if group.controls)),
        request,
        shows_source=True,
        keeps_level=True,
    )
