"""Many small requests at the same time, their answers in the order in which they were asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 16
"""Each waits for a round trip most of the time."""
AHEAD = 64
"""Answers that may wait to be taken: so much is in memory."""

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(function, items)` by several threads that run a little ahead; an exception comes where its answer would."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for unneeded in waiting:
                unneeded.cancel()
