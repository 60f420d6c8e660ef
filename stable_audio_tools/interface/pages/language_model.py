"""Audio written code by code, from the start or as the continuation of other audio."""

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import NUM_SAMPLES, SEED, Control, Group, condition_controls, request_from
from stable_audio_tools.interface.pages.page import Page

_DRAWING = (
    Control("temp", "slider", "Temperature", 1.0, 0, 3, 0.01, info="0 always takes the likeliest code."),
    Control("top_k", "slider", "Of the likeliest codes", 250, 0, 2048, 1, info="0 takes all."),
    Control("top_p", "slider", "Of their probability", 0.0, 0, 1, 0.01, info="0 leaves this out."),
    Control("cfg_scale", "slider", "Guidance", 1.0, 0, 15, 0.1, info="1 is none."),
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
