"""Audio of a model that is told nothing."""

from functools import partial

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.controls import (
    NUM_SAMPLES,
    PREVIEW_EVERY,
    SEED,
    Group,
    condition_controls,
    request_from,
    sampler_controls,
    variation_group,
)
from stable_audio_tools.interface.pages.page import Page


def page(model: AudioModel) -> Page:
    """The page of an unconditional diffusion model."""
    groups = (
        Group((*condition_controls(model), SEED, NUM_SAMPLES)),
        Group((*sampler_controls(model.facts), PREVIEW_EVERY), "Sampling"),
        variation_group(model.facts),
    )
    return Page("Generate", "Generate", "generate", groups, partial(request_from, model))
