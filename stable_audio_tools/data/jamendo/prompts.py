"""Prompts of Jamendo tracks, from the tables above their folder."""

import random
from pathlib import Path

from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.field_prompts import FieldRecipe, write_fields
from stable_audio_tools.data.jamendo.tables import find_track, track_number

TRAINING = FieldRecipe()
TAGS_ONLY = FieldRecipe(
    fields=("mood", "genre", "instrument"), keep=1.0, shuffle=False, labels=0.0, lowercase=1.0, uppercase=0.0
)


def prompt_for_track(path: str | Path, recipe: FieldRecipe, rng: random.Random) -> str:
    """A prompt for an audio file; a track without any field of the recipe is a bad item, and never its own path."""
    prompt = write_fields(find_track(path), recipe, rng)
    if prompt is None:
        raise BadItem("bad metadata", f"{path}: its row has none of {', '.join(recipe.fields)}")
    return prompt


def seeded_prompt(path: str | Path, seed: int) -> str:
    """The prompt in the style of training that a track always gets for a seed."""
    return prompt_for_track(path, TRAINING, random.Random(seed + (track_number(Path(path).name) or 0)))
