"""`--lora PATH[:STRENGTH]`, as several commands take it."""

from pathlib import Path
from typing import NamedTuple


class LoraChoice(NamedTuple):
    path: Path
    strength: float

    def __str__(self) -> str:
        return f"{self.path}:{self.strength:g}"


def lora_choice(text: str) -> LoraChoice:
    """An adapter file, and how strongly it acts: 1 unless a number follows the last colon."""
    path, _, strength = text.rpartition(":")
    try:
        return LoraChoice(Path(path), float(strength)) if path else LoraChoice(Path(text), 1.0)
    except ValueError:
        return LoraChoice(Path(text), 1.0)
