"""Result files with the setup of every score, and comparisons of results with equal setups."""

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.version import __version__

FORMAT = "stable-audio-tools scores 1"
DEFINITIONS = 2  # incremented when a score of the same name is computed differently
TOLERANCE = 1e-3  # relative; the last digits of vectors depend on the device and the batch size


class Subject(TypedDict, total=False):
    """Subject of an evaluation: a set of audio, or a model and its weights."""

    name: str
    reference: str
    embedder: str
    source: str
    made_by: str
    digest: str
    vectors: int | None
    files: int
    failed: dict[str, str]
    model_config: str
    weights: str


@dataclass(frozen=True)
class Result:
    """Scores of one subject under one setup."""

    subject: Subject
    setup: Mapping[str, object]  # must be equal for scores to be comparable
    scores: Mapping[str, float | None]  # None: could not be computed, and `details` has the reason
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON


@dataclass(frozen=True)
class SetComparison:
    """Paired comparison of two generated sets by one score; a difference below 0 is in favour of `a`."""

    embedder: str
    reference: str
    a: str
    b: str
    score: str
    pairs: int
    difference: float
    low: float
    high: float
    share_better: float  # of the resamples in which `a` is better
    p: float


def software() -> dict[str, str]:
    """Return the versions of the libraries that compute scores."""
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


def write_results(path: str | Path, results: Sequence[Result], comparisons: Sequence[SetComparison] = ()) -> None:
    """Write a JSON file; the same results give the same bytes."""
    document: dict[str, object] = {
        "format": FORMAT,
        "software": software(),
        "results": [asdict(result) for result in results],
    }
    if comparisons:
        document["comparisons"] = [asdict(comparison) for comparison in comparisons]
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | Path) -> list[Result]:
    """Read the results of a file written by `write_results`."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path}: contains no scores of this toolkit")
    return [Result(**result) for result in document["results"]]


Named = tuple[str, Result]


def group_comparable(named: Sequence[Named]) -> dict[str, list[Named]]:
    """Group results of one embedder and one reference set; raise if the setups in a group differ."""
    groups: dict[str, list[Named]] = {}
    for name, result in named:
        parts = (result.subject.get("embedder"), result.subject.get("reference"))
        groups.setdefault(" against ".join(str(part) for part in parts if part), []).append((name, result))
    if len(groups) > 1 and all(len(group) == 1 for group in groups.values()):
        require_same_setup(named)  # no result is comparable with another, so report the differences
    for group in groups.values():
        require_same_setup(group)
    return groups


def require_same_setup(named: Sequence[Named]) -> None:
    """Raise if the results have different setups, and list the differences."""
    (first, base), *others = named
    problems = []
    for name, other in others:
        differing = list(_differences(base.setup, other.setup))
        if differing:
            differences = "; ".join(f"{key} is {a!r} and {b!r}" for key, a, b in differing)
            problems.append(f"{first} and {name} were not measured alike: {differences}")
    if problems:
        raise UserError("\n".join(problems))


def _differences(a: object, b: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(a, float) and isinstance(b, float):
        if not math.isclose(a, b, rel_tol=TOLERANCE):
            yield path, a, b
    elif a != b:
        yield path, a, b


def as_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows as aligned columns for a terminal."""

    def text(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.5g}" if isinstance(value, float) else str(value)

    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
