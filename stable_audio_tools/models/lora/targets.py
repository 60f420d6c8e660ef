"""The layers of an adapter, chosen by patterns over module paths."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.lora.config import LoraConfig

_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Embedding)
_LEFT_ALONE = "pretransform"  # adapted only where a pattern names it: the model was trained on its latents


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every layer that can have an adapter, by its path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _ADAPTABLE)
        and path
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    }


def matches(pattern: str, path: str) -> bool:
    """Return True if the pattern is part of the path; `*` matches any text, `[a-b]` any number from a to b.

    A digit at either end of the pattern is a whole number of the path: `layers.1` is not `layers.12`.
    """
    return _compile(pattern).search(path) is not None


def find_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """Return the layers that a config names; a pattern without a match is an error."""
    layers = adaptable_layers(model)
    if not layers:
        raise ConfigError("lora: the model holds no Linear, Conv1d or Embedding layer to adapt")
    problems = [
        *_unmatched("include", config.include, layers, model),
        *_unmatched("exclude", config.exclude, layers, model),
    ]
    problems += _unmatched("ranks", list(config.ranks), layers, model)
    for name in config.component_whitelist or ():
        if not any(_has_part(name, path) for path in layers):
            problems.append(
                f"lora.component_whitelist: {name!r} is part of no layer's path; {_near(name, layers, model)}"
            )
    if problems:
        raise ConfigError(problems)
    chosen = {path: module for path, module in layers.items() if _is_chosen(path, config)}
    if not chosen:
        raise ConfigError("lora.exclude: leaves no layer to adapt; take a pattern out")
    return chosen


def select_paths(patterns: Sequence[str], paths: Iterable[str], where: str) -> set[str]:
    """Return the paths that a pattern matches; a pattern without a match is an error."""
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            raise ConfigError(
                f"{where}: {pattern!r} matches none of the adapter's layers; {nearest_paths(pattern, paths)}"
            )
    return {path for path in paths if any(matches(pattern, path) for pattern in patterns)}


def rank_of(path: str, config: LoraConfig) -> int:
    """Return the rank of a layer in a config."""
    asked = [rank for pattern, rank in config.ranks.items() if matches(pattern, path)]
    return asked[-1] if asked else config.rank


def nearest_paths(name: str, paths: Iterable[str]) -> str:
    """Format the end of a message about a pattern that matches nothing."""
    known: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        for first in range(len(parts)):
            for last in range(first + 1, min(first + 4, len(parts)) + 1):
                known.setdefault(".".join(parts[first:last]))
    plain = [part for part in known if not part.replace(".", "").isdigit()]
    close = difflib.get_close_matches(name, plain, n=3, cutoff=0.5)
    if close:
        return f"near misses: {', '.join(close)}"
    parts_seen = list(dict.fromkeys(part for part in plain if "." not in part))
    return f"parts of the paths are: {', '.join(parts_seen[:12])}"


def _is_chosen(path: str, config: LoraConfig) -> bool:
    if config.component_whitelist is not None:
        wanted = any(_has_part(name, path) for name in config.component_whitelist)
    elif config.include is not None:
        wanted = any(matches(pattern, path) for pattern in config.include)
    else:
        wanted = True
    named = any(_LEFT_ALONE in pattern for pattern in (config.include or config.component_whitelist or ()))
    if _LEFT_ALONE in path.split(".") and not named:
        return False
    return wanted and not any(matches(pattern, path) for pattern in config.exclude)


def _has_part(name: str, path: str) -> bool:
    return f".{name}." in f".{path}."


def _unmatched(
    key: str, patterns: Sequence[str] | None, layers: Mapping[str, nn.Module], model: nn.Module
) -> list[str]:
    return [
        f"lora.{key}: {pattern!r} matches no layer that can be adapted; {_near(pattern, layers, model)}"
        for pattern in patterns or ()
        if not any(matches(pattern, path) for path in layers)
    ]


def _near(pattern: str, layers: Mapping[str, nn.Module], model: nn.Module) -> str:
    others = [path for path, _ in model.named_modules() if path not in layers and matches(pattern, path)]
    if others:
        return f"it matches {others[0]}, which holds no Linear, Conv1d or Embedding"
    return nearest_paths(pattern, layers)


def _compile(pattern: str) -> re.Pattern[str]:
    pieces = []
    for piece in re.split(r"(\*|\[\d+-\d+\])", pattern):
        bounds = re.fullmatch(r"\[(\d+)-(\d+)\]", piece)
        if bounds:
            first, last = int(bounds[1]), int(bounds[2])
            pieces.append(rf"(?<!\d)(?:{'|'.join(map(str, range(first, last + 1))) or '(?!)'})(?!\d)")
        else:
            pieces.append(".*" if piece == "*" else re.escape(piece))
    before = r"(?<!\d)" if pattern[:1].isdigit() else ""
    after = r"(?!\d)" if pattern[-1:].isdigit() else ""
    return re.compile(before + "".join(pieces) + after)
