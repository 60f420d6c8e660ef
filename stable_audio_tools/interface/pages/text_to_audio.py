"""Audio from a prompt or other conditions, from noise or from other audio."""

from functools import partial

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import (
    NUM_SAMPLES,
    PREVIEW_EVERY,
    SEED,
    Control,
    Group,
    condition_controls,
    guidance_controls,
    request_from,
    sampler_controls,
    variation_group,
)
from stable_audio_tools.interface.pages.page import Page


def page(model: AudioModel) -> Page:
    """The page of a conditional diffusion model."""
    return Page(
        "Generate",
        "Generate",
        "generate",
        (*main_groups(model), variation_group(model.facts)),
        partial(request_from, model),
    )


def main_groups(model: AudioModel) -> tuple[Group, ...]:
    """Conditions, sampling, guidance."""
    conditions = list(condition_controls(model))
    if "prompt" in model.conditions:
        place = 1 + next((i for i, control in enumerate(conditions) if control.name == "prompt"), -1)
        conditions.insert(place, Control("negative_prompt", "prompt", "Negative prompt", "", info="What to avoid."))
    return (
        Group(tuple(conditions)),
        Group((SEED, NUM_SAMPLES)),
        Group((*sampler_controls(model.facts), PREVIEW_EVERY), "Sampling"),
        Group(guidance_controls(model), "Guidance"),
    )
