"""Settings records: a frozen dataclass whose fields say type, default, help text and bounds once.

Flags, ini keys, help and reference tables are derived from the fields (`cli/settings.py`), and the functions of the
package take the record itself. A record refuses wrong values however it was built.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stable_audio_tools.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field says beside its name, type and default."""

    help: str
    group: str = ""  # title of its section in --help
    flags: tuple[str, ...] = ()  # further spellings; "--name" is derived from the field's name
    metavar: str | tuple[str, ...] = ""
    choices: tuple[str, ...] = ()  # where the type is no Literal
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    positional: bool = False
    repeat: bool = False  # one value each time the flag is given, instead of several after one flag
    may_be_empty: bool = False  # the flag may stand without a value
    after_dashes: bool = False  # no flag: takes all words after "--"
    parse: Callable[[str], Any] | None = None  # text -> value, where the type does not tell

    def bound_broken_by(self, value: float) -> str | None:
        """What is allowed, where `value` is not."""
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
    """A field of a settings record; without a default it is required. `about`: fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"option": Setting(help, **about)})


def option_of(field: "dataclasses.Field[Any]") -> Setting:
    """The option that a field was declared with."""
    found: Setting = field.metadata["option"]
    return found


def flag_of(name: str) -> str:
    """`batch_size` -> `--batch-size`"""
    return f"--{name.replace('_', '-')}"


class Settings:
    """Base of settings records: a value out of bounds is refused when the record is built, all mistakes at once."""

    def __post_init__(self) -> None:
        problems = [*self._out_of_bounds(), *self.problems()]
        if problems:
            raise ConfigError(problems)

    def problems(self) -> Iterable[str]:
        """Yield a sentence for each mistake that bounds do not tell, such as options that do not go together."""
        return ()

    def _out_of_bounds(self) -> Iterable[str]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            given = getattr(self, field.name)
            for value in given if isinstance(given, Sequence) and not isinstance(given, str) else (given,):
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    allowed = option_of(field).bound_broken_by(value)
                    if allowed is None and not math.isfinite(value):
                        allowed = "a finite number"
                    if allowed is not None:
                        shown = value if isinstance(value, int) else f"{value:g}"
                        yield f"{flag_of(field.name)}: expected {allowed}, got {shown}"
