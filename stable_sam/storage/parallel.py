"""Computes the next results of an iteration in threads while the caller uses the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from stable_sam.timing import carried

THREADS = 16
"""Threads for many small requests, each of which mostly waits for a round trip."""
AHEAD = 64
"""Results that may wait in memory until the caller takes them."""

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], depth: int = AHEAD, *, threads: int = THREADS
) -> Generator[R, None, None]:
    """Yield `map(function, items)` while threads compute the next `depth` results. They start with this call.

    The results have the order of `items`, and an exception is raised in the place of its result. The threads measure on
    the stage clock of the caller.
    """
    pool, rest, function = ThreadPoolExecutor(min(threads, depth)), iter(items), carried(function)
    waiting = deque(pool.submit(function, item) for item in islice(rest, depth))

    def results() -> Generator[R, None, None]:
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return results()
