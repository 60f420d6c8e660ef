"""Errors for the user: the command line prints their message without a traceback and exits with status 2."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the input or the environment: a file, a key, a flag, an installation."""


class SharedError(UserError):
    """A mistake that every process of a run raises with the same message, printed by rank zero only."""


class ConfigError(UserError):
    """All mistakes found in a config, one sentence each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        return type(self), (self.problems,)


class CheckpointError(UserError):
    """A weight file that cannot be read or does not match the model."""


class AudioError(UserError):
    """An audio file that cannot be read or written."""


class MissingPackage(UserError, ImportError):
    """An optional package that is required but not installed."""


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Convert errors of another package about its options into a ConfigError that starts with `where`."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where}: {reason}") from error


_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run this again",
    errno.EDQUOT: "the disk quota is used up; free some space and run this again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose another place, or change its permissions",
    errno.EPERM: "the system does not permit this; choose another place",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, and a file is needed here",
    errno.ENOTDIR: "a part of this path is a file, and a folder is needed there",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    errno.ENOMEM: "the system has no memory left",
}


def describe_os_error(error: OSError) -> str:
    """Return one sentence about an error of the operating system: the file, the reason and, if known, the remedy."""
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
