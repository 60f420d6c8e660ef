"""Settings records: frozen dataclasses whose fields declare type, default, help text and bounds.

Flags, ini keys, help and reference tables are derived from the fields (`cli/settings.py`); the functions of the package
take the record. A record refuses invalid values no matter how it is built.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stable_audio_tools.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Setting:
    """Help text, flags and bounds of a field."""

    help: str
    group: str = ""  # title of its section in --help
    flags: tuple[str, ...] = ()  # aliases of the flag derived from the field's name
    metavar: str | tuple[str, ...] = ""
    choices: tuple[str, ...] = ()  # allowed values, if the type is not a Literal
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    positional: bool = False
    repeat: bool = False  # one value per flag, and the flag may be repeated
    may_be_empty: bool = False  # the flag may be given without a value
    after_dashes: bool = False  # not a flag: takes all words after "--"
    parse: Callable[[str], Any] | None = None  # converts text to a value, if the type alone is not enough

    def bound_broken_by(self, value: float) -> str | None:
        """Return the allowed range if `value` is outside of it; None otherwise."""
        checks = [
            (self.ge, "at least", self.ge is None or value >= self.ge),
            (self.gt, "more than", self.gt is None or value > self.gt),
            (self.le, "at most", self.le is None or value <= self.le),
            (self.lt, "less than", self.lt is None or value < self.lt),
        ]
        if all(holds for _, _, holds in checks):
            return None
        if self.ge is not None and self.le is not None:
            return f"{self.ge} to {self.le}"
        return " and ".join(f"{words} {limit}" for limit, words, _ in checks if limit is not None)


def option(default: Any = dataclasses.MISSING, help: str = "", **about: Any) -> Any:
    """Declare a field of a settings record, required if it has no default. `about` are fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"option": Setting(help, **about)})


def option_of(field: "dataclasses.Field[Any]") -> Setting:
    """Return the `Setting` of a field."""
    found: Setting = field.metadata["option"]
    return found


def flag_of(name: str) -> str:
    """Return the flag of a field: `--batch-size` for `batch_size`."""
    return f"--{name.replace('_', '-')}"


_INTEGERS_END = 10**18  # larger ones overflow in torch, NumPy and the system


class Settings:
    """Base class of settings records; building one raises a single error with all invalid values."""

    def __post_init__(self) -> None:
        problems = [*self._out_of_bounds(), *self.problems()]
        if problems:
            raise ConfigError(problems)

    def problems(self) -> Iterable[str]:
        """Yield a sentence for each mistake beyond the bounds, such as two options that exclude each other."""
        return ()

    def _out_of_bounds(self) -> Iterable[str]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            given = getattr(self, field.name)
            for value in given if isinstance(given, Sequence) and not isinstance(given, str) else (given,):
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    allowed = option_of(field).bound_broken_by(value)
                    if allowed is None and isinstance(value, int) and abs(value) >= _INTEGERS_END:
                        allowed = "a whole number of at most 18 digits"
                    elif allowed is None and isinstance(value, float) and not math.isfinite(value):
                        allowed = "a finite number"
                    if allowed is not None:
                        shown = str(value)[:40] if isinstance(value, int) else f"{value:g}"
                        yield f"{flag_of(field.name)}: expected {allowed}, got {shown}"
