"""JSON files in and out, with the line of a mistake."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import write_text


def load(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; comments, trailing commas and repeated keys are refused with their place.

    A bare name such as `stable_audio_2_0` is that of a config that is shipped, unless there is a file of that name.
    """
    try:
        text = resolve_config(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_shipped_instead(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    return parse(text, str(path))


def resolve_config(path: str | Path) -> Path:
    """The file of a path, or of the name of a shipped config."""
    path = Path(path)
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    return _shipped_configs().get(path.name, path)


def _shipped_configs() -> dict[str, Path]:
    folder = Path(__file__).parents[2] / "configs"
    return {file.stem: file for file in sorted(folder.glob("*_configs/**/*.json"))}


def _shipped_instead(path: Path) -> str:
    """What to give instead of a missing file, if a shipped config comes near its name."""
    if path.stem.startswith("model_config"):
        wanted = path.stem.removeprefix("model_config").strip("_") or "full"
        names = [name for name in _shipped_configs() if name.startswith("jamendo")]
        return f"; configs for Stable Audio Open are shipped as {', '.join(names)}: give jamendo_{wanted}, for instance"
    names = get_close_matches(path.stem, _shipped_configs(), cutoff=0.7)
    return f"; a config named {names[0]} is shipped: give this name alone" if names else ""


def parse(text: str, name: str = "config") -> dict[str, Any]:
    """Read a JSON object from text; `name` stands before each message."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


def save(config: Mapping[str, Any], path: str | Path) -> None:
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
        return "JSON strings stand in double quotes, not single ones"
    return f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}"
