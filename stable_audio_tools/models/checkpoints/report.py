"""What a load did: which tensors fitted, which were missing, left over, or of another shape."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class WrongShape(NamedTuple):
    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} is {list(self.in_file)} in the file, {list(self.in_model)} in the model"


class Tally(NamedTuple):
    """Tensors of one part of the model."""

    loaded: int
    of: int


@dataclass(frozen=True)
class LoadReport:
    """Names are the model's; `sizes` holds the number of values of each of its tensors."""

    source: str
    recognised: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[WrongShape, ...]
    upgrades: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every tensor of the model was loaded, and every tensor of the file was used."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    @property
    def percent(self) -> float:
        """Share of the model's values that came from the file."""
        total = sum(self.sizes.values())
        return 100 * sum(self.sizes[name] for name in self.loaded) / total if total else 100.0

    @property
    def by_prefix(self) -> dict[str, Tally]:
        """Loaded and expected tensors of each part of the model."""
        loaded = set(self.loaded)
        depth = _splitting_depth(self.sizes)
        expected = Counter(_prefix(name, depth) for name in self.sizes)
        got = Counter(_prefix(name, depth) for name in self.sizes if name in loaded)
        return {prefix: Tally(got[prefix], count) for prefix, count in expected.items()}

    def summary(self) -> str:
        """Three lines."""
        largest = sorted(self.by_prefix.items(), key=lambda item: -item[1].of)[:6]
        parts = ", ".join(f"{prefix} {tally.loaded} of {tally.of}" for prefix, tally in largest)
        upgraded = "".join(f"; {name.replace('_', ' ')}: {count}" for name, count in self.upgrades.items())
        lines = [
            f"loaded {len(self.loaded)} of {len(self.sizes)} tensors, {self.percent:.1f} % of the model's values"
            f"{f' ({parts})' if len(self.by_prefix) > 1 else ''}{upgraded}",
            f"missing from the file: {_listed(self.missing)}",
            f"in the file but not used: {_listed(self.unexpected)}",
        ]
        if self.wrong_shape:
            more = f" and {len(self.wrong_shape) - 1} more" if len(self.wrong_shape) > 1 else ""
            lines[2] += f"; of another shape: {self.wrong_shape[0]}{more}"
        return "\n".join(lines)


def _listed(names: Collection[str]) -> str:
    if not names:
        return "none"
    if len(names) <= 3:
        return ", ".join(names)
    depth = _splitting_depth(names)
    groups = Counter(_prefix(name, depth) for name in names).most_common(4)
    rest = len(names) - sum(count for _, count in groups)
    text = ", ".join(f"{prefix} {count}" for prefix, count in groups)
    return f"{len(names)} ({text}{f', others {rest}' if rest else ''})"


def _splitting_depth(names: Collection[str]) -> int:
    """How many parts of the names to show until they tell two groups apart."""
    for depth in range(1, 6):
        if len({_prefix(name, depth) for name in names}) > 1:
            return depth
    return 1


def _prefix(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])
