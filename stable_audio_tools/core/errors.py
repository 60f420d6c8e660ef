"""Errors that speak to the user: the command line prints them as they are and exits with status 2."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something outside this program must change: a file, a key, a flag, an installation."""


class ConfigError(UserError):
    """Every mistake found in a config, one sentence each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        return type(self), (self.problems,)


class CheckpointError(UserError):
    """A weight file that cannot be read, or does not fit the model."""


class AudioError(UserError):
    """An audio file that cannot be read or written."""


class MissingPackage(UserError, ImportError):
    """An optional package that is needed for what was asked."""
