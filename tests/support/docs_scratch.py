"""A folder that looks like a clone, in which blocks are executed within the test's own process."""

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import docs_commands as commands
from support import docs_stand_ins as stand_ins
from support.docs_pages import Block

ROOT = Path(__file__).parents[2]


def make_clone(folder: Path) -> Path:
    """Copies of the small folders, links to the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("example", "container"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("clips"))
    for path in (*ROOT.glob("*.py"), ROOT / "defaults.ini", ROOT / "scripts", ROOT / "stable_audio_tools"):
        (folder / path.name).symlink_to(path)
    return folder


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The folder as the current one, and the environment as it was afterwards."""
    before, kept = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(kept)


def execute(block: Block, names: dict[str, Any]) -> None:
    """Carry out a marked block in the current folder; `names` are those of the page's python blocks."""
    if block.mark == "needs":
        for wanted in block.value.split():
            assert wanted in stand_ins.STAND_INS, f"{block.place}: no stand-in {wanted!r}; add it to stand_ins.py"
            stand_ins.STAND_INS[wanted](Path.cwd())
    elif block.mark == "file":
        path = Path(block.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    elif block.mark == "run" and block.language == "python":
        exec(compile(block.text, block.place, "exec"), names)
    elif block.mark == "run":
        assert block.language == "bash", f"{block.place}: only bash and python blocks are run"
        for command in commands.commands_in(block.text):
            run_command(command, block.value.split(), block.place)


def expanded(word: str) -> list[str]:
    """What a shell makes of a word with stars."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def run_command(command: commands.Command, more: list[str], place: str) -> None:
    os.environ.update(command.environment)
    words = [part for word in command.words for part in expanded(word)]
    found = commands.ours(tuple(words))
    if found is None:
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.returncode == 0, f"{place}: {command.shown}: {result.stdout}{result.stderr}"
        return
    runner, arguments = found
    run = runner if callable(runner) else runner.main  # a command, or a script of its own
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            status = run([*arguments, *more])
        except SystemExit as error:
            status = error.code
    assert not status, f"{place}: {command.shown}: exit status {status}\n{told.getvalue()}"
