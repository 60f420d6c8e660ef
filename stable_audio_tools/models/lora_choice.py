"""The option `--lora PATH[:STRENGTH]` of several commands."""

import math
from pathlib import Path
from typing import NamedTuple

from stable_audio_tools.core.errors import UserError


class LoraChoice(NamedTuple):
    """An adapter file and its strength."""

    path: Path
    strength: float

    def __str__(self) -> str:
        return f"{self.path}:{self.strength:g}"


def lora_choice(text: str) -> LoraChoice:
    """Read `PATH[:STRENGTH]`; the strength is 1 unless a number follows the last colon.

    Other colons belong to the path (`C:\\loras\\a.safetensors`), and so do all of them if a file of the whole name
    exists.
    """
    path, _, number = text.rpartition(":")
    if not path or Path(text).exists():
        return LoraChoice(Path(text), 1.0)
    try:
        strength = float(number)
    except ValueError:
        if not Path(path).is_file():
            return LoraChoice(Path(text), 1.0)
        raise UserError(f"after {path}: a strength is expected, got {number!r}") from None
    if not math.isfinite(strength):
        raise UserError(f"{text}: the strength must be a finite number")
    return LoraChoice(Path(path), strength)
