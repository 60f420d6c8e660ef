"""Reads and writes JSON files; a message about a mistake names its line."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import write_text

JsonObject = dict[str, Any]


def load(path: str | Path) -> JsonObject:
    """Read a JSON object; comments, trailing commas and repeated keys are refused with line and column.

    A bare name such as `stable_audio_2_0` selects the shipped config of that name, unless such a file exists.
    """
    try:
        text = resolve_config(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_shipped_instead(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    return parse(text, str(path))


def resolve_config(path: str | Path) -> Path:
    """Return the file for a path, or for the name of a shipped config."""
    path = Path(path)
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    return _shipped_configs().get(path.name, path)


def _shipped_configs() -> dict[str, Path]:
    folder = Path(__file__).parents[2] / "configs"
    return {file.stem: file for file in sorted(folder.glob("*_configs/**/*.json"))}


def _shipped_instead(path: Path) -> str:
    """Suggest a shipped config whose name is close to that of a missing file."""
    if path.stem.startswith("model_config"):
        variant = path.stem.removeprefix("model_config").strip("_") or "full"
        names = [name for name in _shipped_configs() if name.startswith("jamendo")]
        return f"; configs for Stable Audio Open are shipped as {', '.join(names)}: for example jamendo_{variant}"
    names = get_close_matches(path.stem, _shipped_configs(), cutoff=0.7)
    return f"; to use the shipped config, give its name alone: {names[0]}" if names else ""


def parse(text: str, name: str = "config") -> JsonObject:
    """Read a JSON object from text; each message starts with `name`."""

    def unique(pairs: list[tuple[str, object]]) -> JsonObject:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(f"{name}: key {repeated[0]!r} is given twice in one object; keep one of them")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}:{error.colno}: {_explain(error)}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be a config") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected a JSON object {{...}}, got {type(value).__name__}")
    return value


def save(config: Mapping[str, object], path: str | Path) -> None:
    """Write a config as JSON, atomically."""
    write_text(path, json.dumps(config, indent=2) + "\n")


def _explain(error: json.JSONDecodeError) -> str:
    here, before = error.doc[error.pos :].lstrip(), error.doc[: error.pos].rstrip()
    if here.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove this one"
    if (here[:1] in ("}", "]") and before.endswith(",")) or (before.endswith(",") and "trailing comma" in error.msg):
        return f"trailing comma before {here[:1] or 'the end'!r}; remove the comma"
    if "trailing comma" in error.msg:
        return "trailing comma; remove it"
    if here.startswith("'"):
        return "JSON strings use double quotes, not single ones"
    return f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}"
