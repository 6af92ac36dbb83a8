"""One output under torment: drivers started again by the same command until they complete, a reader beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.processes import Process, alive, descendants, kill
from tests.reliability.torment import Torment

TICK_S = 0.02
LOOK_EVERY_S = 0.5
"""Between two looks at all processes of the machine, which is work."""


class Hung(Exception):
    """A driver neither completed nor gave up within its time."""


@dataclass(slots=True)
class Seen:
    """What a reader saw."""

    polls: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Job:
    """The command that is repeated."""

    command: Sequence[str]
    environment: dict[str, str]
    table: str
    log: Path
    helpers: Sequence[int] = ()
    """Processes whose descendants work for the drivers, too: a shared Ray."""
    time_limit_s: float = 300
    """Of one attempt."""
    say: Callable[[str], None] = print
    reasons: list[str] = field(default_factory=list)
    """The last line of each driver that gave up."""


@dataclass(slots=True)
class _Attempt:
    drivers: list[subprocess.Popen[bytes]]
    job: Job
    started: float = 0.0
    known: set[Process] = field(default_factory=set)

    @property
    def table(self) -> str:
        return self.job.table

    def relatives(self) -> set[Process]:
        return descendants([*self.job.helpers, *(driver.pid for driver in self.drivers)])

    def say(self, text: str) -> None:
        self.job.say(text)


def run_until_complete(job: Job, torment: Torment, *, drivers: int, max_attempts: int) -> int:
    """Start `drivers` drivers at once, and each that did not complete again; returns the number of starts.

    Raises `Hung`, and RuntimeError when `max_attempts` were not enough.
    """
    missing, starts = drivers, 0
    for number in range(max_attempts):
        if number:
            torment.between(job.table)
        codes = _attempt(job, torment, missing)
        starts += missing
        missing = sum(code != 0 for code in codes)
        if not missing:
            return starts
    raise RuntimeError(f"not complete after {max_attempts} attempts: {job.reasons[-1:]}")


def _attempt(job: Job, torment: Torment, drivers: int) -> list[int]:
    attempt = _Attempt([], job)
    torment.arm(attempt)
    logs = [job.log.with_name(f"{job.log.name}-{time.monotonic_ns()}") for _ in range(drivers)]
    for log in logs:
        with log.open("wb") as file:
            attempt.drivers.append(
                subprocess.Popen(job.command, env=os.environ | job.environment, stdout=file, stderr=file)
            )
    look, deadline = 0.0, time.monotonic() + job.time_limit_s
    try:
        while any(driver.poll() is None for driver in attempt.drivers):
            if time.monotonic() > deadline:
                raise Hung(f"a driver was still at work after {job.time_limit_s:.0f} s: {_last_line(logs[0])}")
            if not attempt.started and any(log.stat().st_size for log in logs):
                attempt.started = time.monotonic()
            if time.monotonic() >= look:
                look = time.monotonic() + LOOK_EVERY_S
                attempt.known |= descendants(driver.pid for driver in attempt.drivers)
            torment.tick(attempt)
            time.sleep(TICK_S)
    finally:
        for driver in attempt.drivers:
            driver.kill()
            driver.wait()
        for process in attempt.known:
            if alive(process):
                kill(process)
    for driver, log in zip(attempt.drivers, logs, strict=True):
        if driver.returncode > 0:
            job.reasons.append(_last_line(log))
            job.say(f"a driver gave up (exit code {driver.returncode}): {job.reasons[-1][:150]}")
    return [driver.returncode for driver in attempt.drivers]


@contextmanager
def reading(table: str) -> Iterator[Seen]:
    """A reader in a process of its own, which reaches the store directly; afterwards it is known what it saw."""
    command = [sys.executable, "-m", "tests.reliability.reader", table]
    seen = Seen()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        try:
            yield seen
        finally:
            answer, _ = reader.communicate(timeout=120)
            if answer:
                found = json.loads(answer)
                seen.polls, seen.violations = found["polls"], found["violations"]
            else:
                seen.violations = [f"it ended with exit code {reader.returncode}"]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
