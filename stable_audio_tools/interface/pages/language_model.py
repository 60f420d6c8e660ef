"""Audio written code by code, from the start or as the continuation of other audio."""

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import (
    NUM_SAMPLES,
    SEED,
    Control,
    Group,
    condition_controls,
    control_of,
    request_from,
)
from stable_audio_tools.interface.pages.page import Page

_DRAWING = (
    control_of("temp", 1.0),
    control_of("top_k", 250),
    control_of("top_p", 0.0),
    control_of("cfg_scale", 1.0, maximum=15),
)


def page(model: AudioModel) -> Page:
    """The page of a language model."""
    conditions = list(condition_controls(model))
    if "prompt" in model.conditions:
        conditions.append(Control("negative_prompt", "prompt", "Negative prompt", "", info="What to avoid."))
    use = Control("use_init", "switch", "Continue audio", False, info="Off: the audio below has no effect.")
    groups = (
        Group(tuple(conditions)),
        Group((SEED, NUM_SAMPLES)),
        Group(_DRAWING, "Drawing of codes"),
        Group((use, Control("init_audio", "audio", "Audio to continue")), "Continuation"),
    )

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        arguments = request_from(model, {**values, "use_init": False})
        if values["use_init"]:
            if values["init_audio"] is None:
                raise ValueError("Continue audio is on, but there is no audio; add some, or switch it off")
            arguments["init_audio"] = values["init_audio"]
        return arguments | {name: values[name] for name in ("temp", "top_k", "top_p")}

    return Page("Generate", "Generate", "generate", groups, request)
