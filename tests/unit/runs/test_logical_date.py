"""Which night a run stands for, and since when files count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from stable_sam.errors import ConfigError
from stable_sam.runs.dates import check_logical_date, day_of, since_moment

LATE = datetime(2025, 11, 23, 23, 30, tzinfo=UTC)


@pytest.fixture(params=["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def worker_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone of the machine, 25 hours apart from each other at most."""
    with monkeypatch.context() as environment:
        environment.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("worker_zone")
@pytest.mark.parametrize(
    ("zone", "day"),
    [("UTC", "2025-11-23"), ("Europe/Berlin", "2025-11-24"), ("America/New_York", "2025-11-23")],
)
def test_the_date_is_the_schedule_s_wherever_the_worker_stands(zone: str, day: str) -> None:
    assert day_of(LATE, zone) == day
    assert day_of(LATE.astimezone(timezone(timedelta(hours=9))), zone) == day


def test_a_run_without_a_schedule_has_no_date() -> None:
    assert day_of(None, "UTC") is None


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"^timezone: expected an IANA name such as Europe/Berlin, got '"):
        day_of(None, zone)


@pytest.mark.parametrize("given", ["today", "2025-13-01", "23.11.2025"])
def test_a_wrong_date_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        check_logical_date(given)


@pytest.mark.parametrize(
    ("since", "moment"),
    [
        ("2025-11-23", datetime(2025, 11, 22, 23, 0, tzinfo=UTC)),
        ("2025-11-23T06:30", datetime(2025, 11, 23, 5, 30, tzinfo=UTC)),
        ("2025-11-23T06:30+00:00", datetime(2025, 11, 23, 6, 30, tzinfo=UTC)),
    ],
)
def test_since_is_read_in_the_zone_of_the_schedule(since: str, moment: datetime) -> None:
    assert since_moment(since, "Europe/Berlin") == moment


def test_a_wrong_since_is_refused() -> None:
    assert since_moment(None, "UTC") is None
    with pytest.raises(ConfigError, match="^since: expected YYYY-MM-DD or YYYY-MM-DDTHH:MM, got 'yesterday'$"):
        since_moment("yesterday", "UTC")


@pytest.mark.parametrize(
    "text", ["2026-W01", "2026-W01-1", "20260101", "20260101T06:00", "2026-01-01-", "yesterday", ""]
)
def test_since_is_a_date_or_a_time_and_no_week(text: str) -> None:
    with pytest.raises(ConfigError, match="since: expected YYYY-MM-DD or YYYY-MM-DDTHH:MM, got"):
        since_moment(text, "UTC")


@pytest.mark.parametrize("text", ["2026-01-01T06:00", "2026-01-01 06:00:00", "2026-01-01T06:00:00.000Z"])
def test_since_may_have_a_time(text: str) -> None:
    assert since_moment(text, "UTC") == datetime(2026, 1, 1, 6, tzinfo=UTC)
