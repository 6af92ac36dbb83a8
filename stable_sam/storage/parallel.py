"""What is needed next is made by threads while something else goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from stable_sam.timing import carried

THREADS = 16
"""Of many small requests, each waits for a round trip most of the time."""
AHEAD = 64
"""Answers to them that may wait to be taken: so much is in memory."""

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], depth: int = AHEAD, *, threads: int = THREADS
) -> Generator[R, None, None]:
    """`map(function, items)` whose next `depth` results are being made by threads, from this call on.

    The results come in the order of `items`; an exception comes where its result would. The threads measure on the
    stage clock of the caller.
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
