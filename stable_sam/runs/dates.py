"""Reads the dates and times that users write: the night that a run stands for, and since when files count."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from stable_sam.errors import ConfigError
from stable_sam.table.log import iso_moment


def iso_date(text: str, what: str) -> date:
    """The date of YYYY-MM-DD, the only form, as dates are compared as text; else a `ConfigError` begins with `what`."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise ConfigError(f"{what}: expected YYYY-MM-DD, got {text!r}")
    return day


def check_logical_date(logical_date: str | None) -> None:
    """Raise `ConfigError` for anything but a date such as 2025-11-23, or None."""
    if logical_date is not None:
        iso_date(logical_date, "logical date")


def since_moment(since: str | None, timezone: str) -> datetime | None:
    """Read an ISO date (its midnight) or an ISO time in `timezone`, unless the time has an offset of its own.

    Returns None for None. Raises `ConfigError` for anything else.
    """
    zone = _zone(timezone)
    if since is None:
        return None
    try:
        moment = iso_moment(since)
    except ValueError:
        raise ConfigError(f"since: expected YYYY-MM-DD or YYYY-MM-DDTHH:MM, got {since!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def day_of(moment: datetime | None, timezone: str) -> str | None:
    """Return the ISO date of an aware `moment` in `timezone`; raises `ConfigError` for an unknown zone.

    The worker's own zone is not used, so that a night has the same date on every machine.
    """
    zone = _zone(timezone)
    return None if moment is None else moment.astimezone(zone).date().isoformat()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"timezone: expected an IANA name such as Europe/Berlin, got {name!r}") from None
