"""When a run is red."""

from __future__ import annotations

import pytest

from stable_sam.errors import InputError
from stable_sam.summary import RunSummary, SummaryRow, check_failures


def summary(ok: int, failed: int) -> RunSummary:
    counts = {"ok": ok, "failed": failed}
    rows = (SummaryRow(status=status, route="", prompts=n, medians=()) for status, n in counts.items() if n)
    return RunSummary(table_uri="masks", run_id="r1", rows=tuple(rows))


@pytest.mark.parametrize(("ok", "failed", "allowed"), [(9, 1, 0.1), (1, 9, 1.0), (10, 0, 0.0)])
def test_green(ok: int, failed: int, allowed: float) -> None:
    check_failures(summary(ok, failed), allowed)


@pytest.mark.parametrize(
    ("ok", "failed", "allowed", "what"),
    [
        (8, 2, 0.1, "2 of 10 prompts failed, more than max_failed_fraction 0.1"),
        (9, 1, 0.0, "1 of 10 prompts failed, more than max_failed_fraction 0"),
        (0, 5, 1.0, "all 5 prompts failed"),
    ],
)
def test_red(ok: int, failed: int, allowed: float, what: str) -> None:
    with pytest.raises(InputError, match=f"^masks: {what}; run r1 is published"):
        check_failures(summary(ok, failed), allowed)
