"""Prompts of MTG-Jamendo tracks: title, artist, album, year and tags, differently at each visit.

The tables (`raw_30s.tsv` or `raw.tsv`, with `raw.meta.tsv` or `audio_metadata.tsv` beside it) lie in a folder above the
audio. A dataset config does the same without a module: `"captions": {"recipe": {}}` and `"metadata_path"`.
"""

import random
from typing import Any

from stable_audio_tools.data.jamendo.tables import TRAINING, prompt_for_track


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """The loader seeds `random` for each visit, so a run that is repeated sees the same prompts."""
    return {"prompt": prompt_for_track(info["path"], TRAINING, random.Random(random.getrandbits(63)))}
