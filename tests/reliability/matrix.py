"""One store's part of the fault matrix: each case on outputs of its own, until enough was injected, then checked."""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stable_sam.storage.files import list_files
from stable_sam.storage.uris import join
from stable_sam.table.log import open_table
from tests.reliability.cases import UNDISTURBED, Case
from tests.reliability.checks import check_table, orphans, sweep
from tests.reliability.processes import descendants, in_role
from tests.reliability.proxy import Rule
from tests.reliability.stores import Store
from tests.reliability.storm import Job, reading, run_until_complete
from tests.reliability.torment import StoreFaults, Torment
from tests.reliability.workload import Night, config, nights, write_workload

JITTER_COUNT = 30
"""Slows the tiny model down, so that there is something to interrupt."""
MAX_ATTEMPTS = 25
MAX_OUTPUTS = 12
"""Of one case: a moment that is drawn too late for one output may be met on the next."""


@dataclass(slots=True, kw_only=True)
class Result:
    """One row of the table."""

    fault: str
    store: str
    injected: int = 0
    rows_expected: int = 0
    rows_found: int = 0
    duplicates: int = 0
    violations: int = 0
    """Of what a reader may see."""
    swept: int = 0
    problems: list[str] = field(default_factory=list)
    outputs: int = 0
    starts: int = 0
    polls: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    """Why drivers gave up that were not killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how the cases of a store run."""

    store: Store
    folder: Path
    """Local; for configs and logs."""
    ray_address: str
    ray_pid: int
    seed: int
    time_limit_s: float
    say: Callable[[str], None]


class Matrix:
    """The cases of one store."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._store = setting, setting.store
        self._first, self._second = nights()
        self._template = join(self._store.uri, "template")
        for own in (False, True):
            self._config(own).write_text(config(None if own else setting.ray_address, jitter_count=JITTER_COUNT))

    def run(self, case: Case) -> Result:
        """Torment outputs, empty ones and ones with a first night in turn, until enough was injected."""
        result = Result(fault=case.fault, store=self._store.name)
        started = time.monotonic()
        try:
            if case is UNDISTURBED:
                write_workload(self._store.uri)
            draw = random.Random(f"{self._setting.seed} {self._store.kind} {case.name}")
            torment = case.make(self._store, draw)
            try:
                self._repeat(case, torment, result, empty=draw.random() < 0.5)
            finally:
                result.injected = torment.injected
                torment.close()
        except Exception as error:
            traceback.print_exc()
            result.problems.append(f"{type(error).__name__}: {error}")
        result.seconds = round(time.monotonic() - started, 1)
        return result

    def run_without_condition(self) -> Result:
        """A store that ignores If-None-Match is refused before anything is planned."""
        result = Result(fault="store ignores If-None-Match: refused", store=self._store.name, outputs=1, starts=1)
        table = join(self._store.uri, "unconditional", "table")
        torment = StoreFaults(self._store, random.Random(self._setting.seed), lambda: [Rule("unconditional")])
        try:
            run_until_complete(self._job(UNDISTURBED, table, self._first), torment, drivers=1, max_attempts=1)
            result.problems.append("a driver completed")
        except RuntimeError as error:
            if "If-None-Match" not in str(error):
                result.problems.append(f"refused for another reason: {error}")
        finally:
            torment.close()
        result.injected = torment.injected
        if left := list_files(table):
            result.problems.append(f"{len(left)} files were written, first {left[0]}")
        return result

    def _repeat(self, case: Case, torment: Torment, result: Result, *, empty: bool) -> None:
        if case is UNDISTURBED:
            self._torment(case, torment, self._template, result)
            return
        while result.outputs < case.outputs or (not torment.satisfied and result.outputs < MAX_OUTPUTS):
            table = join(self._store.uri, f"{case.name}-{result.outputs}", "table")
            if result.outputs % 2 == empty:
                self._store.copy(self._template, table)
            torment.new_output()
            self._torment(case, torment, table, result)
        if not torment.satisfied:
            result.problems.append(f"only {torment.injected} faults could be injected")

    def _torment(self, case: Case, torment: Torment, table: str, result: Result) -> None:
        night = self._second if open_table(table) is not None else self._first
        result.outputs += 1
        job = self._job(case, table, night)
        attempts = 1 if case is UNDISTURBED else MAX_ATTEMPTS
        try:
            with reading(table) as seen:
                result.starts += run_until_complete(job, torment, drivers=case.drivers, max_attempts=attempts)
        finally:
            torment.pause()
            result.reasons += job.reasons
        result.polls += seen.polls
        result.violations += len(seen.violations)
        result.problems += [f"reader: {violation}" for violation in seen.violations[:5]]
        found = check_table(table, night)
        result.problems += found.problems
        result.rows_expected += night.rows
        result.rows_found += found.rows
        result.duplicates += found.duplicates
        self._wait_for_late_actors()
        lying_about = orphans(table)
        result.problems += sweep(table)
        result.swept += len(lying_about)

    def _wait_for_late_actors(self) -> None:
        """Ray ends the actors of a killed driver, but not at once, and they may still write."""
        for _ in range(100):
            if not in_role("actor", descendants([self._setting.ray_pid])):
                return
            time.sleep(0.2)

    def _job(self, case: Case, table: str, night: Night) -> Job:
        setting = self._setting
        source, images = join(self._store.uri, night.source), join(self._store.uri, "images")
        settings = str(self._config(case.own_ray))
        if case.command:
            names = {"annotations": source, "images": images, "output": table, "config": settings}
            command = ["-c", "from flows.cli import main; main()", "refine", *(f"--{k}={v}" for k, v in names.items())]
        else:
            command = ["-m", "tests.reliability.driver", source, images, table, settings]
        return Job(
            command=[sys.executable, *command],
            environment=self._store.environment,
            table=table,
            log=setting.folder / f"{self._store.kind}-{case.name}",
            helpers=[] if case.own_ray else [setting.ray_pid],
            time_limit_s=setting.time_limit_s,
            say=lambda text: setting.say(f"{self._store.name}: {case.fault}: {text}"),
        )

    def _config(self, own_ray: bool) -> Path:
        return self._setting.folder / f"{self._store.kind}-{'own' if own_ray else 'shared'}-ray.yaml"
