"""Lists that were written with generated audio: which file was made for which conditions."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import ConfigError

_NAMES = ("manifest.jsonl", "prompt_manifest.json")


def find_conditions(path: str | Path) -> dict[str, Any]:
    """Prompt, seconds and the like of a generated file, from the list in the nearest folder above it that has one."""
    place = Path(path).absolute()
    for folder in place.parents:
        for name in _NAMES:
            if (folder / name).is_file():
                found = _read(str(folder / name)).get(place.relative_to(folder).as_posix())
                if found is None:
                    raise ConfigError(f"{path}: {folder / name} does not name this file")
                return dict(found)
    raise ConfigError(f"{path}: no {' or '.join(_NAMES)} in any folder above it")


@lru_cache(maxsize=8)
def _read(path: str) -> dict[str, dict[str, Any]]:
    """{file: conditions}, each with a prompt."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        lined = path.endswith(".jsonl")
        items = [json.loads(line) for line in text.splitlines()] if lined else json.loads(text)["items"]
        return {item["file" if lined else "filename"]: _conditions(item, path) for item in items}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a list of generated files ({type(error).__name__}: {error})") from None


def _conditions(item: Mapping[str, Any], path: str) -> dict[str, Any]:
    given = item.get("conditions", item)
    if not isinstance(given.get("prompt"), str) or not given["prompt"].strip():
        raise ConfigError(f"{path}: {item.get('file', item.get('filename'))} has no prompt")
    kept = {key: given[key] for key in ("prompt", "seconds_start", "seconds_total") if given.get(key) is not None}
    return {"seconds_start": 0.0, **kept}
