"""Nights of the past: which dates, in which order, and which are done."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest

from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError
from stable_sam.runs.backfill import check_order, days, in_force
from stable_sam.runs.estimate import duration, measured
from stable_sam.table.log import RunInfo


def run(**facts: Any) -> RunInfo:
    blank: dict[str, Any] = {field.name: "" for field in fields(RunInfo)}
    numbers = {"version": 0, "revision": 1, "rows": 0, "failed": 0, "images": 0, "routes": {}, "changes": {}}
    return RunInfo(**blank | numbers | {"published_at": datetime.now(UTC), "logical_date": None} | facts)


def test_days_are_both_ends_and_all_between() -> None:
    assert days("2024-02-28", "2024-03-01") == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert days("2025-11-23", "2025-11-23") == ["2025-11-23"]


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("today", "2025-11-23", "^--from: expected YYYY-MM-DD, got 'today'$"),
        ("2025-11-23", "2025-11-31", "^--to: expected YYYY-MM-DD, got '2025-11-31'$"),
        ("2025-11-24", "2025-11-23", "^--from 2025-11-24: expected a date that is not after --to 2025-11-23$"),
    ],
)
def test_wrong_dates_are_one_line(first: str, last: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        days(first, last)


def test_a_day_without_a_run_has_the_content_of_the_run_before_it() -> None:
    runs = [
        run(run_id="corrected", logical_date="2025-11-20", version=3),
        run(run_id="second", logical_date="2025-11-22", version=2),
        run(run_id="undated", version=1),
        run(run_id="first", logical_date="2025-11-20", version=0),
    ]
    found = {day: in_force(runs, day) for day in ("2025-11-19", "2025-11-20", "2025-11-21", "2025-11-22", "2025-12-01")}
    assert [None if info is None else info.run_id for info in found.values()] == [
        None, "corrected", "corrected", "second", "second"
    ]  # fmt: skip


def test_a_table_is_not_left_at_an_older_date() -> None:
    runs = [run(logical_date="2025-11-22"), run(logical_date=None)]
    check_order(runs, "2025-11-20", "2025-11-22")
    with pytest.raises(ConfigError, match="--to 2025-11-21: the table already stands at 2025-11-22"):
        check_order(runs, "2025-11-20", "2025-11-21")


def test_the_estimate_comes_from_runs_with_the_same_settings() -> None:
    config = RunConfig()
    same = {"config_hash": config.content_hash()}
    runs = [
        run(**same, actor_seconds=90.0, images=20, rows=105, changes={"withdrawn": 5}),
        run(config_hash="other", actor_seconds=1.0, images=1000, rows=1000),
        run(**same, actor_seconds=10.0, images=0, rows=5, changes={"withdrawn": 5}),
        run(**same, actor_seconds=None, images=10, rows=10),
        run(**same, actor_seconds=30.0, images=20, rows=20),
    ]
    speed = measured(runs, config)
    assert speed is not None
    assert (speed.runs, speed.images, speed.prompts, speed.seconds) == (2, 40, 120, 120.0)
    assert speed.estimate(40, 120, config.prompt_cost) == pytest.approx(120.0)
    assert speed.estimate(80, 240, config.prompt_cost) == pytest.approx(240.0)
    assert measured(runs[1:4], config) is None


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
