"""Measures how long each stage of the work takes. The clock belongs to the thread, so no function has to pass it on.

    with StageClock() as clock:           # measures one image in its process, or one shard
        with timed("decode"): ...         # anywhere in the functions that are called
    clock.times()                         # small enough to send to another process, where `add_times` adds it

Seconds are summed over threads: where several threads work at a time, the sum exceeds the time that passed. Waiting
for the model counts in no stage. On a GPU, kernels still run after their call has returned: the encoder's time then
counts in the stage that first needs the embedding, `decode_prompts`. Where spans are kept, the encoder is waited for.
"""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

STAGES = (
    "fetch", "decode", "resize", "encode", "decode_prompts", "jitter", "second_pass", "rle", "write", "commit"
)  # fmt: skip
"""The stages in their order: fetch to rle happen once for each image, write and commit once for each shard."""
WAIT = "wait"
"""Name of a span in which a thread waits for its turn at the model. It is no stage."""
SPANS_OF_AN_IMAGE = 200
SPANS_OF_A_SHARD = 2000
_GAP_S = 0.001
"""Two spans of one stage and thread with a shorter gap become one span, because masks are encoded one by one. A
shorter wait is not kept."""
_EPOCH_S = time.time() - time.monotonic()
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One piece of work on a time line of the run."""

    stage: str
    about: str
    """URI of the image or id of the shard that was worked on."""
    start: float
    """Seconds since 1970."""
    seconds: float
    thread: str
    """Node, process id and thread id, joined by colons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What a clock has measured."""

    seconds: Mapping[str, float]
    """Seconds by stage of `STAGES`, for the stages that ran."""
    spans: tuple[Span, ...] = ()
    left_out: int = 0
    """Number of spans that were dropped because the clock's limit was reached."""


class StageClock:
    """Sums seconds by stage and, on request, keeps a bounded number of spans. Several threads may add to it."""

    def __init__(self, *, spans: int = 0, about: str = "") -> None:
        """Start an empty clock.

        spans: the most spans to keep, 0 for the sums alone.
        about: image URI or shard id for spans that name none themselves.
        """
        self.most_spans = spans
        self._about = about
        self._seconds: dict[str, float] = {}
        self._spans: list[Span] = []
        self._last: dict[str, int] = {}
        self._left_out = 0
        self._adding = threading.Lock()
        self._before: Token[StageClock | None] | None = None

    def __enter__(self) -> Self:
        """Make `timed` add to this clock in this thread."""
        self._before = _clock.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make `timed` add to the clock that it added to before."""
        assert self._before is not None, "entered"
        _clock.reset(self._before)

    def times(self) -> Times:
        """Return what was measured until now."""
        with self._adding:
            return Times(seconds=dict(self._seconds), spans=tuple(self._spans), left_out=self._left_out)

    def add(self, times: Times) -> None:
        """Add what another clock has measured."""
        with self._adding:
            for stage, seconds in times.seconds.items():
                self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
            room = max(0, self.most_spans - len(self._spans))
            self._spans.extend(times.spans[:room])
            self._left_out += times.left_out + len(times.spans[room:])

    def stop(self, stage: str, about: str, started: float, ended: float, own_seconds: float) -> None:
        """Add a stage that a thread has finished.

        started, ended: when the thread was in the stage, by `time.monotonic`.
        own_seconds: the time between them without the stages that ran inside it.
        """
        with self._adding:
            if stage != WAIT:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + own_seconds
            if self.most_spans and not (stage == WAIT and own_seconds < _GAP_S):
                self._keep(stage, about or self._about, _EPOCH_S + started, ended - started)

    def _keep(self, stage: str, about: str, start: float, seconds: float) -> None:
        thread = f"{platform.node()}:{os.getpid()}:{threading.get_native_id()}"
        if thread in self._last:
            last = self._spans[self._last[thread]]
            gap = start - last.start - last.seconds
            if (last.stage, last.about) == (stage, about) and 0 <= gap < _GAP_S:
                self._spans[self._last[thread]] = replace(last, seconds=start + seconds - last.start)
                return
        if len(self._spans) >= self.most_spans:
            self._left_out += 1
            return
        self._last[thread] = len(self._spans)
        self._spans.append(Span(stage=stage, about=about, start=start, seconds=seconds, thread=thread))


class timed:
    """Context manager around a stage: adds its seconds to the thread's clock, if it has one. The seconds of a stage
    inside another one count only in the inner stage."""

    __slots__ = ("_about", "_inner", "_outer", "_stage", "_started", "seconds")

    def __init__(self, stage: str, about: str = "") -> None:
        self._stage = stage
        self._about = about
        self._inner = 0.0
        self._outer: Token[timed | None]
        self.seconds = 0.0
        """Seconds of this stage, without those of the stages inside it; 0 until it has ended."""

    def __enter__(self) -> Self:
        self._outer = _open.set(self)
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = time.monotonic()
        _open.reset(self._outer)
        self.seconds = ended - self._started - self._inner
        if (outer := _open.get()) is not None:
            outer._inner += ended - self._started
        if (clock := _clock.get()) is not None:
            clock.stop(self._stage, self._about, self._started, ended, self.seconds)


@contextmanager
def turn(lock: threading.Lock) -> Iterator[None]:
    """Hold the lock; the time spent waiting for it does not count in the surrounding stage."""
    with ExitStack() as held:
        with timed(WAIT):
            held.enter_context(lock)
        yield


def carried(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap `function` so that in another thread it measures on the clock of the calling thread."""
    clock = _clock.get()

    def with_clock(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        before = _clock.set(clock)
        try:
            return function(*arguments, **named)
        finally:
            _clock.reset(before)

    return function if clock is None else with_clock


def add_times(times: Times) -> None:
    """Add what another process has measured to this thread's clock, if it has one."""
    if (clock := _clock.get()) is not None:
        clock.add(times)


def keeps_spans() -> bool:
    """Tell whether this thread's clock keeps spans, so that code may wait for the GPU to separate the stages."""
    clock = _clock.get()
    return clock is not None and clock.most_spans > 0


_clock: ContextVar[StageClock | None] = ContextVar("stage_clock", default=None)
_open: ContextVar[timed | None] = ContextVar("open_stage", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShares:
    """How a run's time is shared among the stages, over all its shards, actors and helpers."""

    seconds: Mapping[str, float]
    """Seconds summed over threads, for every stage of `STAGES`."""
    images: int
    prompts: int

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return math.fsum(self.seconds.values())

    def cells(self) -> list[list[str]]:
        """Return a printable table: the header, one line for each stage, and the total."""
        header = ["stage", "seconds", "share", "ms an image", "ms a prompt"]
        lines = [self._line(stage, self.seconds[stage]) for stage in STAGES]
        return [header, *lines, self._line("all", self.total)]

    def line(self) -> str:
        """Name the stages with at least 0.5 % of the time, the longest first; empty when nothing was refined."""
        most = sorted((stage for stage in STAGES if self._share(stage) >= 0.005), key=self._share, reverse=True)
        return f"Time: {', '.join(f'{stage} {self._share(stage):.0%}' for stage in most)}." if most else ""

    def _share(self, stage: str) -> float:
        return self.seconds[stage] / self.total if self.total else 0.0

    def _line(self, name: str, seconds: float) -> list[str]:
        share = f"{seconds / self.total:.1%}" if self.total else "-"
        by = (f"{1000 * seconds / count:.1f}" if count else "-" for count in (self.images, self.prompts))
        return [name, f"{seconds:.2f}", share, *by]


def summed(shards: Sequence[Mapping[str, float] | None], commit_seconds: float = 0.0) -> dict[str, float] | None:
    """Sum the seconds of every stage over all shards; None when a shard has no measurements.

    commit_seconds: time spent committing the shards, which no shard's own record can hold.
    """
    known = [shard for shard in shards if shard is not None]
    if len(known) < len(shards):
        return None
    total = {stage: math.fsum(shard.get(stage, 0.0) for shard in known) for stage in STAGES}
    return total | {"commit": total["commit"] + commit_seconds}
