"""Decides which nights of the past have to be run, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from stable_sam.errors import ConfigError
from stable_sam.runs.dates import iso_date
from stable_sam.table.log import RunInfo

DATE = "{date}"
"""Placeholder in a URI for the logical date, YYYY-MM-DD."""
_MOST_DAYS = 3660
"""Most dates of one backfill, ten years; more come from a mistyped year."""


def days(first: str, last: str) -> list[str]:
    """List the ISO dates from `first` to `last`, both included; raises `ConfigError` unless these are ordered dates."""
    start, end = iso_date(first, "--from"), iso_date(last, "--to")
    if start > end:
        raise ConfigError(f"--from {first}: expected a date that is not after --to {last}")
    if (end - start).days >= _MOST_DAYS:
        raise ConfigError(f"--from {first}: expected at most {_MOST_DAYS} days up to --to {last}")
    return [(start + timedelta(days=day)).isoformat() for day in range((end - start).days + 1)]


def in_force(runs: Iterable[RunInfo], day: str) -> RunInfo | None:
    """Find the published run whose content was current on the evening of `day`; None when there is none.

    It is the newest run of the latest logical date up to `day`.
    """
    dated = [run for run in runs if run.logical_date is not None and run.logical_date <= day]
    return max(dated, key=lambda run: (run.logical_date or "", run.version), default=None)


def check_order(runs: Iterable[RunInfo], day: str, last: str) -> None:
    """Raise `ConfigError` when running from `day` to `last` would leave the table with the content of an older date."""
    newest = max((run.logical_date for run in runs if run.logical_date is not None), default="")
    if newest > last:
        raise ConfigError(
            f"--to {last}: the table already stands at {newest}, and running {day} would make older annotations "
            f"current again; give --to {newest} or later, or another --output"
        )
