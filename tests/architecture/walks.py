"""Records which functions of the package a piece of work passes through, in the order of their first calls.

Calls during imports, such as registrations, are no part of a walk.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import stable_audio_tools

ROOT = Path(stable_audio_tools.__file__).parent


class Walk(NamedTuple):
    """The functions of a walk as `file:function`, by their first call, and the number of calls to earlier files."""

    steps: list[str]
    climbs: int

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(step.partition(":")[0] for step in self.steps))


def walk(work: Callable[[], Any]) -> Walk:
    """Run `work` in this thread and record the package's functions that it calls."""
    prefix = f"{ROOT}/"
    steps: dict[str, int] = {}
    files: dict[str, int] = {}
    climbs: set[tuple[str, str]] = set()

    def observe(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(prefix):
            return
        file = name.removeprefix(prefix)
        step = f"{file}:{frame.f_code.co_name}"
        caller = frame.f_back
        source = caller.f_code.co_filename.removeprefix(prefix) if caller is not None else ""
        is_climb = source in files and file in files and files[file] < files[source] and (source, file) not in climbs
        if (step not in steps or is_climb) and not _is_import(frame):
            steps.setdefault(step, len(steps))
            files.setdefault(file, len(files))
            if is_climb:
                climbs.add((source, file))

    sys.setprofile(observe)
    try:
        work()
    finally:
        sys.setprofile(None)
    return Walk(list(steps), len(climbs))


def _is_import(frame: FrameType | None) -> bool:
    """Whether the frame, or one that called it, is the body of a module or class."""
    while frame is not None:
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED and frame.f_code.co_filename.startswith(str(ROOT)):
            return True
        frame = frame.f_back
    return False
