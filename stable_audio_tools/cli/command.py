"""What every command shares: help that shows defaults, and one sentence instead of a traceback."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from stable_audio_tools.core.errors import UserError, describe_os_error

Run = Callable[[argparse.Namespace], int | None]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False) or action.default is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


def make_parser(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """A parser in the style of this package; abbreviated flags are refused, so that adding a flag breaks no script."""
    options.setdefault("formatter_class", HelpFormatter)
    return argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False, **options)


def command(make: Callable[[], argparse.ArgumentParser], run: Run) -> Callable[[Sequence[str] | None], int]:
    """The `main(argv)` of a command."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(make, run, argv)

    return main


def run_command(make: Callable[[], argparse.ArgumentParser], run: Run, argv: Sequence[str] | None) -> int:
    """Parse and run -> exit status: 0 done, 1 found something wrong, 2 the user's input must change."""
    try:
        arguments = make().parse_args(argv)
        from stable_audio_tools.core import logs

        logs.setup(verbose=getattr(arguments, "verbose", False))
        return run(arguments) or 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a read-only folder: nothing that a traceback would explain
        logging.getLogger(__name__).debug("the error in full", exc_info=True)
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 2
