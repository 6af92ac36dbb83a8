"""Processes as Linux lists them: who descends from whom, which part each plays, and an end by SIGKILL."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROLES = {
    "actor": ("ray::ShardActor",),
    "model process": ("tasks.actors.child",),
    "raylet": ("/raylet/raylet",),
    "gcs": ("gcs_server",),
}
"""Role -> what its command line holds. A driver is known by its pid."""


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    started: int
    """Clock ticks since boot: with the pid it names a process for ever."""


def running() -> dict[int, Process]:
    """Every process that is no zombie."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    pid = int(folder.name)
                    found[pid] = Process(pid, int(fields[1]), int(fields[19]))
    return found


def descendants(roots: Iterable[int]) -> set[Process]:
    """All that descend from `roots`, without these."""
    processes, wanted = running(), set(roots)
    found: set[Process] = set()
    while more := {p for p in processes.values() if p.parent in wanted and p.pid not in wanted}:
        found |= more
        wanted |= {p.pid for p in more}
    return found


def in_role(role: str, among: Iterable[Process]) -> list[Process]:
    """Those of `among` that play `role`, in the order in which they started."""
    return sorted(
        (p for p in among if any(mark in command_line(p) for mark in ROLES[role])), key=lambda p: (p.started, p.pid)
    )


def command_line(process: Process) -> str:
    """Empty when the process is gone."""
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    return ""


def alive(process: Process) -> bool:
    """Whether it still runs; it may have another parent by now."""
    now = running().get(process.pid)
    return now is not None and now.started == process.started


def kill(process: Process) -> bool:
    """SIGKILL unless the process is gone or its pid is another's by now; returns whether it was sent."""
    if not alive(process):
        return False
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
        return True
    return False
