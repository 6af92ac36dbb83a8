"""Processes that a test started, directly or through others: they are known by a variable in their environment."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = "STABLE_SAM_TEST"


def new_mark() -> dict[str, str]:
    """A variable for the environment of a process; what it starts inherits it."""
    return {_NAME: uuid.uuid4().hex}


def processes(environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Number and command line of every process that has the mark of `environment`."""
    mark = f"{_NAME}={environment[_NAME]}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue


def left_after(environment: dict[str, str], seconds: float, counts: Callable[[str], bool]) -> list[str]:
    """The command lines that count of the processes that are still there after some seconds."""
    end = time.monotonic() + seconds
    while True:
        left = [line for _, line in processes(environment) if counts(line)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


def take_interrupts() -> None:
    """Make a process that is about to start end by Ctrl-C, by which a worker of Prefect also ends itself.

    A shell lets what it starts in the background ignore it, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
