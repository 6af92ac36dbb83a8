"""Run a model in a child process and watch it, because an image may crash it, use up its memory or hang in it.

The parent knows which images are in the child. When the child ends, these images are tried again one at a time in a new
child. The prompts of an image with which the child ends again become failed rows with the reason; all other masks are
kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stable_sam.config import RefinerConfig
from stable_sam.errors import StableSamError
from stable_sam.identity import ModelIdentity
from stable_sam.records import RefinedMask
from stable_sam.refining.image_job import ImageJob, Job, failed_masks
from stable_sam.timing import add_times
from tasks.actors.child import Answer, ChildSettings, Hello

PROMPTS_OF_A_LIMIT = 100
"""Number of prompts of an image that the time limit is for; an image with more has more time, in proportion."""
TILES_OF_A_LIMIT = 4
"""Number of tiles of an image that the time limit is for: the encoder passes each tile once, and once more mirrored."""
_DEATHS_THAT_CONDEMN = 2
"""Number of times that the child must end with an image before its prompts become failed rows."""
_KILLS_THAT_CONDEMN = 3
"""Number of such ends where a signal came from outside, which may have had nothing to do with the image."""
_FROM_OUTSIDE = -signal.SIGKILL, -signal.SIGTERM
"""Exit codes of a process that the system, a person or systemd ended."""
_STARTS = 3
_WATCH_EVERY_S = 0.05
_LAST_BREATH_S = 10.0
"""Seconds that a process may take to end after its pipe was closed, for instance for a core dump."""
_GONE = EOFError, OSError
"""Errors of a pipe whose other end is gone."""


class DeviceLostError(Exception):
    """Raised when the child lives but fails every job, as after an illegal access on a GPU, which no image caused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the time and the memory that one image may take."""

    seconds: float
    """Seconds for an image of at most `PROMPTS_OF_A_LIMIT` prompts and `TILES_OF_A_LIMIT` tiles."""
    memory_mb: int
    """Memory in MB beyond that of the loaded model."""

    def seconds_for(self, job: Job, refiner: RefinerConfig) -> float:
        """Return the seconds for a job, in proportion to its prompts and tiles beyond those of the limit."""
        prompts = len(job.prompts)
        tiles = 0 if refiner.tiles == "off" else min(prompts, refiner.max_tiles)
        return self.seconds * max(1.0, prompts / PROMPTS_OF_A_LIMIT, tiles / TILES_OF_A_LIMIT)


@dataclass(frozen=True, slots=True)
class _Death:
    reason: str
    from_outside: bool


class RefinerProcess:
    """A child process that is started again whenever it is needed. Only one thread at a time may call."""

    def __init__(self, settings: ChildSettings, limits: Limits) -> None:
        self._settings = settings
        self._limits = limits
        self._child: _Child | None = None
        self._hello: Hello | None = None

    @property
    def input_side(self) -> int | None:
        """Return the side in pixels of the model's input, when other processes may prepare and finish its images."""
        return None if self._hello is None else self._hello.input_side

    def start(self) -> ModelIdentity | None:
        """Start the child unless it runs, and return the identity of its model; raises `StableSamError`."""
        for _ in range(_STARTS):
            if self._child is None:
                self._child = _Child(self._settings, self._limits)
            try:
                self._hello = self._child.hello()
                return self._hello.identity
            except _GONE:
                death = self._bury()
            except StableSamError:
                self.stop()
                raise
        raise StableSamError(f"the process of the model ended while it started: {death.reason}")

    def refine(self, jobs: Iterator[ImageJob]) -> Iterator[list[RefinedMask]]:
        """Yield the masks of each job, in order; raises what `answers` raises."""
        for answer in self.answers(jobs):
            assert isinstance(answer, list), "a model refines an image as a whole"
            yield answer

    def answers(self, jobs: Iterator[Job | list[RefinedMask]]) -> Iterator[Answer]:
        """Yield the child's answer to each job, in order, while several jobs are in the child.

        A list of masks among the jobs is yielded as it is. Raises what `jobs` raises, `DeviceLostError`, and
        `StableSamError` when the child does not start again.
        """
        order: deque[int] = deque()
        answers: dict[int, Answer] = {}
        try:
            for number, job in enumerate(jobs):
                order.append(number)
                if isinstance(job, list):
                    answers[number] = job
                elif isinstance(job, ImageJob) and job.error is not None:
                    answers[number] = failed_masks(job, job.error)
                else:
                    while len(self._flight) >= self._settings.images_at_once:
                        self._receive(answers)
                    self._send(number, job, answers)
                while order and order[0] in answers:
                    yield answers.pop(order.popleft())
            while self._flight:
                self._receive(answers)
            yield from (answers[number] for number in order)
        finally:
            self._drain()

    def stop(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._bury()

    @property
    def _flight(self) -> dict[int, Job]:
        return {} if self._child is None else self._child.flight

    def _send(self, number: int, job: Job, answers: dict[int, Answer]) -> None:
        self.start()
        assert self._child is not None, "started"
        try:
            self._child.send(number, job)
        except _GONE:
            self._recover(answers)

    def _receive(self, answers: dict[int, Answer]) -> None:
        assert self._child is not None, "something is in flight"
        try:
            number, answers[number] = self._child.receive()
        except _GONE:
            self._recover(answers)

    def _recover(self, answers: dict[int, Answer]) -> None:
        """Remove the dead child, and try again, one at a time, the images that it had not answered."""
        assert self._child is not None, "the child was used a moment ago"
        with suppress(*_GONE):
            while self._flight:
                number, answers[number] = self._child.receive()
        suspects = self._flight
        death = self._bury()
        for number, job in suspects.items():
            answers[number] = self._alone(job, death)

    def _alone(self, job: Job, first: _Death) -> Answer:
        deaths = [first]
        while len(deaths) < (_KILLS_THAT_CONDEMN if any(d.from_outside for d in deaths) else _DEATHS_THAT_CONDEMN):
            self.start()
            assert self._child is not None, "started"
            try:
                self._child.send(0, job)
                return self._child.receive()[1]
            except _GONE:
                deaths.append(self._bury())
        return failed_masks(job, f"{job.image_uri}: {deaths[-1].reason}, {len(deaths)} times")

    def _drain(self) -> None:
        """Take the remaining answers out of the child, so that they do not answer a later call."""
        with suppress(*_GONE, DeviceLostError):
            while self._child is not None and self._flight:
                self._child.receive()
        if self._flight:
            self.stop()

    def _bury(self) -> _Death:
        child = self._child
        assert child is not None, "only a child that was started is removed"
        self._child = None
        return child.end()


class _Child:
    """One process from its start to its end, and the thread that watches its time and memory."""

    def __init__(self, settings: ChildSettings, limits: Limits) -> None:
        self._limits = limits
        self._refiner = settings.config.refiner
        self._hello: Hello | None = None
        self.flight: dict[int, Job] = {}
        self._changed = time.monotonic()
        self._idle_mb = 0.0
        self._broken_limit: str | None = None
        self._ended = threading.Event()
        ours, theirs = Pipe()
        self._pipe: Connection[Any, Any] = ours
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        code = f"from tasks.actors.child import serve; serve({theirs.fileno()}, {os.getpid()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], pass_fds=[theirs.fileno()], env=os.environ | {"PYTHONPATH": path}
        )
        theirs.close()
        with suppress(BrokenPipeError):
            ours.send(settings)
        threading.Thread(target=self._watch, daemon=True).start()

    def hello(self) -> Hello:
        """Wait until the model is loaded; raises the error that the child sends when it is not."""
        if self._hello is None:
            answer = self._pipe.recv()
            if isinstance(answer, StableSamError):
                raise answer
            self._hello = answer
            self._idle_mb = self._memory_mb()
        return self._hello

    def send(self, number: int, job: Job) -> None:
        if not self.flight:
            self._changed = time.monotonic()
        self.flight[number] = job
        self._pipe.send((number, job))

    def receive(self) -> tuple[int, Answer]:
        """Receive an answer and the number of its job, and add the times of the job to the caller's clock."""
        number, answer, times = self._pipe.recv()
        add_times(times)
        del self.flight[number]
        self._changed = time.monotonic()
        if isinstance(answer, str):
            raise DeviceLostError(answer)
        return number, answer

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> _Death:
        """Say how the process ended; a process that closed its pipe but still lives is killed."""
        self._ended.set()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_BREATH_S)
        self._process.kill()
        code = self._process.wait()
        self._pipe.close()
        if self._broken_limit is not None:
            return _Death(self._broken_limit, False)
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return _Death(f"refining this image ended the process ({how})", code in _FROM_OUTSIDE)

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_EVERY_S):
            self._broken_limit = self._limit_broken_now()
            if self._broken_limit is not None:
                self._process.kill()
                return

    def _limit_broken_now(self) -> str | None:
        jobs = list(self.flight.values())
        if not jobs:
            return None
        seconds = sum(self._limits.seconds_for(job, self._refiner) for job in jobs)
        if time.monotonic() - self._changed > seconds:
            return f"refining this image took longer than its time limit, {seconds:g} s (image_timeout_s)"
        if self._memory_mb() - self._idle_mb > self._limits.memory_mb * len(jobs):
            return f"refining this image took more than its memory limit, {self._limits.memory_mb} MB (image_memory_mb)"
        return None

    def _memory_mb(self) -> float:
        """Memory in MB that only this process uses; 0 where the system does not say."""
        with suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) / 1024
        return 0.0
