"""Helpers of all benchmarks: timing a call by wall-clock and CPU time, spreads, and the options for results."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

Seconds = tuple[float, float]
"""By the clock, and of CPU: of all threads of this process, which other work on the machine stretches less."""
Spread = dict[str, float]


def timed(call: Callable[[], Any], device: torch.device | None = None, times: int = 1) -> tuple[Seconds, Any]:
    """Seconds of one of so many calls, and what the last one returned; waits for the device's work before and after."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        answer = call()
    return ((time.perf_counter() - start) / times, (time.process_time() - cpu) / times), answer


def interleaved(
    sides: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1, at_least_s: float = 0.0
) -> dict[str, list[Seconds]]:
    """Seconds of every round by side. The sides take turns within every round, in an order that changes, so that
    whatever else the machine does meets all alike.

    at_least_s: a side is called so often in a round that it takes about as long as this. The first `warm_up` rounds are
    not counted: first calls choose algorithms and fill caches.
    """
    times: dict[str, list[Seconds]] = {side: [] for side in sides}
    calls = dict.fromkeys(sides, 1)
    for number in range(warm_up + rounds):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            seconds, _ = timed(sides[side], times=calls[side])
            if number >= warm_up:
                times[side].append(seconds)
            else:
                calls[side] = max(1, round(at_least_s / max(seconds[0], 1e-9)))
    return times


def spread(values: ArrayLike) -> Spread:
    """Median and quartiles."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "quarter": low, "three_quarters": high}


def cell(value: Spread | None, digits: int) -> str:
    """A spread as a cell of a table: the median, in brackets the middle half."""
    if value is None:
        return ""
    return f"{value['median']:.{digits}f} [{value['quarter']:.{digits}f}, {value['three_quarters']:.{digits}f}]"


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that `write` takes."""
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)


def write(results: Any, text: str, options: argparse.Namespace) -> None:
    """Print the text, and write it and the results where the options say so."""
    print(text)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")
