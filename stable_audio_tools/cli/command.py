"""The base of all commands: flags from a record, help with defaults, errors as sentences."""

import argparse
import dataclasses
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

from stable_audio_tools.cli.settings import CONFIG_FILE, add_flags, config_file, read_defaults, settings_from
from stable_audio_tools.core.errors import SharedError, UserError, describe_os_error
from stable_audio_tools.core.ranks import is_rank_zero
from stable_audio_tools.core.settings import Settings, option_of

S = TypeVar("S", bound=Settings)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A formatter that shows the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False, ()) or action.default == [] or action.default is argparse.SUPPRESS:
            return action.help
        if isinstance(action.default, (tuple, list)):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """A parser that accepts dashes and underscores in flags, no abbreviations, and reports mistakes as sentences."""

    def __init__(self, prog: str, description: str, after_dashes: str = "") -> None:
        """Create a parser; the attribute named by `after_dashes` receives all words after "--"."""
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        self.after_dashes = after_dashes

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        words = [*map(self._with_dashes, words[:end]), *words[end:]]
        bare = next((word for word in words[:end] if word.startswith("--") and word.endswith("=--")), None)
        if bare is not None:  # argparse would drop the value
            self.error(f"{bare.partition('=')[0]}: expected a value, got '--'")
        self._refuse_unknown([word.partition("=")[0] for word in words[:end] if re.match(r"--[^\W\d]", word)])
        if not self.after_dashes:
            return super().parse_known_args(words, namespace)
        arguments, extra = super().parse_known_args(words[:end], namespace)
        setattr(arguments, self.after_dashes, words[end + 1 :])
        return arguments, extra

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        arguments, extra = self.parse_known_args(args, namespace)
        if extra:
            self.error(f"unexpected argument {extra[0]!r}; {self.prog} --help lists the arguments")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as one sentence; the command then exits with status 2."""
        flags = re.match(r"argument (\S+): ", message)
        if flags is not None:
            message = f"{flags[1].split('/')[0]}: {message[flags.end() :]}"
        message = re.sub(
            r"expected (one|at least one|\d+) arguments?$",
            lambda count: f"expected {'a value' if count[1] == 'one' else f'{count[1]} values'}",
            message,
        ).replace("at least one values", "at least one value")
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            names = re.sub(r"/-[\w-]+", "", missing)
            message = f"{names}: missing; {self.prog} --help describes it"
        raise UserError(message)

    def _with_dashes(self, word: str) -> str:
        """Replace underscores in an unknown flag if the result is a known one: `--model_config=x`."""
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-")
        known = self._option_string_actions
        return f"{dashed}{equals}{value}" if name not in known and dashed in known else word

    def _refuse_unknown(self, flags: Sequence[str]) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        sentences = []
        for flag in flags:
            if flag not in known:
                close = difflib.get_close_matches(flag.replace("_", "-"), known, n=1)
                advice = f"did you mean '{close[0]}'?" if close else f"{self.prog} --help lists the flags"
                sentences.append(f"{flag}: unknown flag; {advice}")
        if sentences:
            raise UserError("\n".join(sentences))


class Command(Generic[S]):
    """A command: a description, the record of its flags, and the function that receives the record.

    With `takes_ini`, defaults are read from the ini file of `--config-file` or from ./defaults.ini.
    """

    def __init__(
        self, settings: type[S], run: Callable[[S], int | None], description: str, takes_ini: bool = False
    ) -> None:
        self.settings, self.run, self.description, self.takes_ini = settings, run, description, takes_ini

    def parser(self, words: Sequence[str] = (), name: str = "stable-audio-tools") -> CommandParser:
        """Create the parser; `words`, the command line, may name a file of defaults."""
        fields = dataclasses.fields(self.settings)  # type: ignore[arg-type]
        behind = next((field.name for field in fields if option_of(field).after_dashes), "")
        built = CommandParser(name, self.description, behind)
        defaults: dict[str, object] = {}
        if self.takes_ini:
            about = f"ini file of defaults (default: ./{CONFIG_FILE} if it exists)"
            built.add_argument("--config-file", metavar="FILE", help=about)
            defaults = read_defaults(config_file(words), self.settings)
        add_flags(built, self.settings, defaults, self.takes_ini)
        return built

    def parse(self, words: Sequence[str], name: str = "stable-audio-tools") -> S:
        """Parse a command line into a record."""
        return settings_from(self.parser(words, name).parse_args(words), self.settings)

    def __call__(self, argv: Sequence[str] | None = None, name: str = "stable-audio-tools") -> int:
        """Parse a command line, run the command and return its exit status."""
        words = list(sys.argv[1:] if argv is None else argv)
        return answer(lambda: self.run(self.parse(words, name)))


def answer(act: Callable[[], int | None]) -> int:
    """Run a function and return the exit status: 0 success, 1 problems found, 2 a mistake in the user's input."""
    try:
        from stable_audio_tools.core import logs

        logs.setup()
        return act() or 0
    except UserError as error:
        if isinstance(error, SharedError) and not is_rank_zero():
            return 2
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a read-only folder: a traceback would not help
        logging.getLogger(__name__).debug("the error in full", exc_info=True)
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 2
