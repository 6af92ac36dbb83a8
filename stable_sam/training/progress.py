"""Progress of long work: a bar with rate and remaining time on a terminal, plain log lines in a file or pipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

CONSOLE = Console(stderr=True)
"""Console for progress, on stderr, because stdout is for results."""


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show the progress of `total` items, of which `done` are done already; yields a function to call after each."""
    columns = (
        TextColumn(title), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda: progress.advance(task)


def log_to_console() -> None:
    """Write log records of level INFO and above to stderr, above the progress bar when there is one."""
    plain = logging.StreamHandler()
    rich = RichHandler(console=CONSOLE, show_level=False, show_path=False, markup=False, highlighter=None)
    text = "%(message)s" if CONSOLE.is_terminal else "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=text, handlers=[rich if CONSOLE.is_terminal else plain])


class _Rate(ProgressColumn):
    """Items per second, or seconds per item when an item takes longer than a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("-")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")
