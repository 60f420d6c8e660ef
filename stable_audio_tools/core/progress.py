"""Progress bars, shown on a terminal only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from stable_audio_tools.core.ranks import is_rank_zero


class Show(Protocol):
    """A callback that reports progress; `total` updates the total if it was unknown before."""

    def __call__(self, done: float, total: float | None = None) -> None: ...


@contextmanager
def progress_bar(title: str, total: float | None) -> Iterator[Show]:
    """Yield a callback that updates the bar."""
    if not sys.stderr.isatty() or not is_rank_zero():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, total=total: bar.update(task, completed=done, total=total)
