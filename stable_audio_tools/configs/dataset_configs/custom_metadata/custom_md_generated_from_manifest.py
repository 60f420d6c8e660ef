"""Prompts of generated audio from the list that was written with it.

Read are `manifest.jsonl`, as `generate.py` writes it, or `prompt_manifest.json`, which holds `{"items": [{"filename",
"prompt", "seconds_start", "seconds_total"}]}`; either is beside the audio.
"""

from typing import Any

from stable_audio_tools.data.metadata import find_conditions


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """Return the request behind a generated file; a file that the list does not name is a bad item."""
    return find_conditions(info["path"])
