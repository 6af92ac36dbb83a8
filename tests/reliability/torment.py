"""What is done to a run while it runs: kills at seeded moments, faults of the store, a disk that fills up."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from stable_sam.errors import NotFoundError
from stable_sam.runs.vacuum import vacuum
from tests.reliability.processes import Process, in_role, kill
from tests.reliability.proxy import Rule
from tests.reliability.stores import Store

STEPS = {
    "a shard's plan": r"/_runs/[^/]+/shards/",
    "the manifest": r"/_runs/[^/]+/manifest\.json",
    "a part": r"/data/",
    "a commit record": r"/commits/",
    "word of publishing": r"/publishing/",
    "the version": r"/_delta_log/",
}
"""What a run writes, in this order -> where."""
LOOK_EVERY_S = 0.1
"""Between two looks at all processes of the machine."""
_MANY = ("a shard's plan", "a part", "a commit record")


class Attempt(Protocol):
    """Drivers at work."""

    @property
    def drivers(self) -> list[subprocess.Popen[bytes]]:
        """Those that this attempt started."""
        ...

    @property
    def started(self) -> float:
        """When the first of them was ready, `time.monotonic`; 0 before."""
        ...

    @property
    def table(self) -> str:
        """Its output."""
        ...

    def relatives(self) -> set[Process]:
        """Every process that works for the drivers."""
        ...

    def say(self, text: str) -> None:
        """One line of progress."""
        ...


class Torment:
    """Does nothing; base of the others, which live as long as a case, over several outputs if need be."""

    injected = 0
    """How often a fault really happened."""

    def new_output(self) -> None:
        """Before the first attempt on an output."""

    def arm(self, attempt: Attempt) -> None:
        """Before the drivers of an attempt start."""

    def tick(self, attempt: Attempt) -> None:
        """Again and again while they work."""

    def between(self, table: str) -> None:
        """After an attempt that did not complete."""

    def pause(self) -> None:
        """After the last attempt on an output."""

    def close(self) -> None:
        """At the end of the case."""

    @property
    def satisfied(self) -> bool:
        """Whether enough was injected."""
        return True


class KillDrivers(Torment):
    """SIGKILL of a driver: before or after it (or its actors) writes something, or a random time after its start.

    A round goes through the steps in their order, each attempt is killed at the next one, so that one output meets all.
    """

    def __init__(self, times: int, draw: random.Random, store: Store, *, seconds: float = 6.0) -> None:
        self._times, self._draw, self._store, self._seconds = times, draw, store, seconds
        self._moments: list[tuple[str, str, int]] = []
        self._moment: tuple[str, str, int] | None = None
        self._due = 0.0
        self._before: set[Path] = set()

    @property
    def satisfied(self) -> bool:
        return self.injected >= self._times

    def new_output(self) -> None:
        steps = [
            (when, step, self._draw.randrange(4) if step in _MANY else 0) for step in STEPS for when in self._whens
        ]
        chosen = [("timed", "", 0), *(moment for moment in steps if self._draw.random() < 0.8)]
        self._moments = chosen[: self._times - self.injected]

    @property
    def _whens(self) -> tuple[str, ...]:
        return ("after",) if self._store.proxy is None else ("before", "after")

    def arm(self, attempt: Attempt) -> None:
        self._moment = self._moments.pop(0) if self._moments and not self.satisfied else None
        self._due = self._draw.uniform(0, self._seconds)
        if self._store.proxy is None:
            self._before = _files(attempt.table)
            return
        rules = []
        if self._moment is not None and self._moment[0] != "timed":
            when, step, skip = self._moment
            strike = partial(self._strike, attempt, f"{when} {step} (number {skip + 1})")
            rules = [Rule(when, rf"^PUT .*{STEPS[step]}", skip=skip, limit=1, then=strike)]
        self._store.proxy.inject(rules, self._draw.randrange(2**32))

    def pause(self) -> None:
        if self._store.proxy is not None:
            self._store.proxy.inject([], 0)

    def tick(self, attempt: Attempt) -> None:
        if self._moment is None or not attempt.started:
            return
        when, step, skip = self._moment
        if when == "timed":
            if time.monotonic() - attempt.started >= self._due:
                self._strike(attempt, f"{self._due:.1f} s after its start")
        elif self._store.proxy is None:
            new = _files(attempt.table) - self._before
            if sum(re.search(STEPS[step], str(path)) is not None for path in new) > skip:
                self._strike(attempt, f"{when} {step} (number {skip + 1})")

    def _strike(self, attempt: Attempt, moment: str) -> None:
        living = [driver for driver in attempt.drivers if driver.poll() is None]
        if living and self._moment is not None:
            self._moment = None
            self._draw.choice(living).kill()
            self.injected += 1
            attempt.say(f"SIGKILL of a driver {moment}")


class KillDriversAndVacuum(KillDrivers):
    """The same, and before each resume everything that vacuum takes for dead is removed, however young it is."""

    def arm(self, attempt: Attempt) -> None:
        super().arm(attempt)
        self._attempt = attempt

    def between(self, table: str) -> None:
        for _ in range(100):  # actors of the killed driver
            if not in_role("actor", self._attempt.relatives()):
                break
            time.sleep(0.2)
        with suppress(NotFoundError):
            vacuum(table, retention_hours=0, force=True)


class KillRole(Torment):
    """SIGKILL of one of the processes in a role, a random time after it appeared."""

    def __init__(
        self, role: str, times: int, draw: random.Random, *, seconds: float = 3.0, per_attempt: int = 3
    ) -> None:
        self._role, self._times, self._draw, self._seconds = role, times, draw, seconds
        self._per_attempt, self._left = per_attempt, per_attempt
        self._due: dict[Process, float] = {}
        self._look = 0.0

    @property
    def satisfied(self) -> bool:
        return self.injected >= self._times

    def arm(self, attempt: Attempt) -> None:
        self._left = self._per_attempt

    def tick(self, attempt: Attempt) -> None:
        now = time.monotonic()
        if self.satisfied or not self._left or now < self._look:
            return
        self._look = now + LOOK_EVERY_S
        for process in in_role(self._role, attempt.relatives()):
            due = self._due.setdefault(process, now + self._draw.uniform(0, self._seconds))
            if now >= due and kill(process):
                self.injected += 1
                self._left -= 1
                attempt.say(f"SIGKILL of the {self._role} {process.pid}")
                return


class StoreFaults(Torment):
    """A store that fails by rules, the same in every attempt."""

    def __init__(self, store: Store, draw: random.Random, rules: Callable[[], list[Rule]]) -> None:
        assert store.proxy is not None, "only a store behind the proxy can be made to fail"
        self._proxy, self._draw, self._rules = store.proxy, draw, rules
        self._before = self._proxy.injected.total()

    def arm(self, attempt: Attempt) -> None:
        self._proxy.inject(self._rules(), self._draw.randrange(2**32))

    def pause(self) -> None:
        self._proxy.inject([], 0)

    @property
    def injected(self) -> int:  # type: ignore[override]  # the proxy counts
        return self._proxy.injected.total() - self._before


class ExpiringCredentials(StoreFaults):
    """From some request on the store refuses the credentials, until the driver is started again (with new ones)."""

    def __init__(self, store: Store, draw: random.Random, times: int) -> None:
        super().__init__(store, draw, list)
        self._moments = ["", *draw.sample([rf"^PUT .*{where}" for where in STEPS.values()], times - 1)][:times]
        self._expired = 0

    def arm(self, attempt: Attempt) -> None:
        rules = []
        if self._moments:
            rules = [Rule("after", self._moments.pop(0), limit=1, then=self._expire)]
        self._proxy.inject(rules, self._draw.randrange(2**32))

    def _expire(self) -> None:
        self._expired += 1
        self._proxy.rules = [Rule("expired")]

    @property
    def injected(self) -> int:  # type: ignore[override]
        return self._expired


class FullDisk(Torment):
    """A small file system in memory (tmpfs) under the output, which is made larger after each attempt."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self._folder, self._draw = folder, draw
        folder.mkdir(parents=True)
        self._mount("size=64m")

    def new_output(self) -> None:
        self._leave_room_for(8)

    def between(self, table: str) -> None:
        self.injected += 1
        self._leave_room_for(self._draw.randrange(12, 48, 4))

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=True)

    def _leave_room_for(self, kib: int) -> None:
        disk = os.statvfs(self._folder)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024
        self._mount(f"remount,size={used + kib}k")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._folder)], check=True)


def _files(folder: str) -> set[Path]:
    return {path for path in Path(folder).rglob("*") if not path.name.startswith(".")}
