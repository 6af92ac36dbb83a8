"""When a run is red."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from stable_sam.errors import InputError
from stable_sam.runs.summary import RunSummary, SummaryRow, check_failures


def summary(ok: int, failed: int, current: int | None = None) -> RunSummary:
    counts = {"ok": ok, "failed": failed}
    rows = (SummaryRow(status=status, route="", prompts=n, medians=()) for status, n in counts.items() if n)
    return RunSummary(table_uri="masks", run_id="r1", rows=tuple(rows), current_prompts=current)


@pytest.mark.parametrize(
    ("ok", "failed", "current", "allowed"),
    [
        (9, 1, None, 0.1),
        (1, 9, 10, 1.0),
        (10, 0, 10, 0.0),
        (0, 0, 500, 0.0),
        # A night of few prompts in a table of many is judged as one of a hundred.
        (0, 1, 500, 0.1),
        (0, 99, 500, 1.0),
        (0, 1, 20, 0.1),
        (450, 50, 500, 0.1),
    ],
)
def test_green(ok: int, failed: int, current: int | None, allowed: float) -> None:
    check_failures(summary(ok, failed, current), allowed)


@pytest.mark.parametrize(
    ("ok", "failed", "current", "allowed", "what"),
    [
        (8, 2, None, 0.1, "2 of 10 prompts failed, more than max_failed_fraction 0.1"),
        (9, 1, 10, 0.0, "1 of 10 prompts failed, more than max_failed_fraction 0"),
        (0, 5, None, 1.0, "all 5 prompts failed"),
        (0, 5, 5, 1.0, "all 5 prompts failed"),
        (0, 100, 500, 1.0, "all 100 prompts failed"),
        (1, 60, 500, 0.5, "60 of 61 prompts failed, more than max_failed_fraction 0.5 (judged as 100 prompts)"),
        (1, 399, 100_000, 0.5, "399 of 400 prompts failed, more than max_failed_fraction 0.5"),
    ],
)
def test_red(ok: int, failed: int, current: int | None, allowed: float, what: str) -> None:
    with pytest.raises(InputError, match=f"^masks: {re.escape(what)}; run r1 is published"):
        check_failures(summary(ok, failed, current), allowed)


def test_a_red_run_says_why_one_prompt_failed() -> None:
    red = replace(summary(0, 3), an_error="labels.json: annotation 1: image file 'a.jpg' is not below images")
    with pytest.raises(
        InputError, match=r"its failed rows say why, one of them: labels.json: annotation 1: image file"
    ):
        check_failures(red, 1.0)
