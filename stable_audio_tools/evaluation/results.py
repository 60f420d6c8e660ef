"""Results that say how they came about, and that are compared only where they were measured alike."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.version import __version__

FORMAT = "stable-audio-tools scores 1"


@dataclass(frozen=True)
class Result:
    """Scores of one subject under one setup."""

    subject: Mapping[str, Any]  # what was judged: a set, or a model and its weights
    setup: Mapping[str, Any]  # what must be equal before scores may be compared
    scores: Mapping[str, float | None]  # None: could not be measured, and `details` says why
    details: Mapping[str, Any] = field(default_factory=dict)


def software() -> dict[str, str]:
    """Versions of what computes."""
    import numpy
    import scipy
    import torch
    import transformers

    return {
        "stable-audio-tools": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "transformers": transformers.__version__,
    }


def write_results(path: str | Path, results: Sequence[Result]) -> None:
    """A JSON file; the same results give the same bytes."""
    document = {"format": FORMAT, "software": software(), "results": [asdict(result) for result in results]}
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | Path) -> list[Result]:
    """The results of a file that `write_results` made."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path}: holds no scores of this toolkit")
    return [Result(**result) for result in document["results"]]


Named = tuple[str, Result]


def group_comparable(named: Sequence[Named]) -> dict[str, list[Named]]:
    """Results of one embedder and one reference set together; those of different setups are refused."""
    groups: dict[str, list[Named]] = {}
    for name, result in named:
        told = (result.subject.get("embedder"), result.subject.get("reference"))
        groups.setdefault(" against ".join(str(part) for part in told if part), []).append((name, result))
    if len(groups) > 1 and all(len(group) == 1 for group in groups.values()):
        require_same_setup(named)  # nothing stands beside anything: say why
    for group in groups.values():
        require_same_setup(group)
    return groups


def require_same_setup(named: Sequence[Named]) -> None:
    """Refuse results of different setups, with what differs."""
    (first, base), *others = named
    problems = []
    for name, other in others:
        differing = list(_differences(base.setup, other.setup))
        if differing:
            told = "; ".join(f"{key} is {a!r} and {b!r}" for key, a, b in differing)
            problems.append(f"{first} and {name} were not measured alike: {told}")
    if problems:
        raise UserError("\n".join(problems))


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, a, b


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns for a terminal."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
