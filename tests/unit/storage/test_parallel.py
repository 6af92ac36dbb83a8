"""What threads make ahead of its use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from stable_sam.storage.parallel import ahead


@pytest.mark.parametrize(("depth", "threads"), [(1, 1), (4, 1), (3, 3), (64, 16)])
def test_what_is_made_ahead_keeps_its_order_and_its_errors(depth: int, threads: int) -> None:
    assert list(ahead(lambda n: n * n, range(9), depth, threads=threads)) == [n * n for n in range(9)]
    results = ahead(lambda n: 1 // n, [1, 0, 1], depth, threads=threads)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_than_the_depth_is_asked_for_ahead() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    with closing(ahead(lambda n: n, items(), 5)) as results:
        assert asked == [0, 1, 2, 3, 4]
        assert next(results) == 0
        assert asked[-1] == 5


def test_what_nobody_waits_for_is_not_made() -> None:
    go, made = threading.Event(), []

    def make(number: int) -> int:
        assert number == 0 or go.wait(30)
        made.append(number)
        return number

    with closing(ahead(make, range(9), 8, threads=1)) as results:
        assert next(results) == 0
    go.set()
    threading.Event().wait(0.05)
    assert set(made) <= {0, 1}
