"""Prompts of MTG-Jamendo tracks: one to four tags each of mood, genre and instrument, in lower case."""

import random
from typing import Any

from stable_audio_tools.data.jamendo.tables import TAGS_ONLY, prompt_for_track


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """The loader seeds `random` for each visit, so a run that is repeated sees the same prompts."""
    return {"prompt": prompt_for_track(info["path"], TAGS_ONLY, random.Random(random.getrandbits(63)))}
