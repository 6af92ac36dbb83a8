"""Where a table may lie, and which dates are dates: refused before any work starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.errors import ConfigError
from stable_sam.formats.sources import check_apart
from stable_sam.runs.backfill import days
from stable_sam.runs.dates import check_logical_date
from stable_sam.runs.request import RunRequest
from stable_sam.runs.vacuum import vacuum
from stable_sam.table.log import open_table


@pytest.mark.parametrize("name", ["run #1", "run?", "a%20b", "a\\b", "a[1]", "a^b", "a|b", "a\nb"])
@pytest.mark.parametrize("place", ["", "s3://bucket/"])
def test_a_table_whose_path_the_delta_library_would_misread_is_refused(name: str, place: str, tmp_path: Path) -> None:
    uri = (place or f"{tmp_path}/") + name
    with pytest.raises(ConfigError, match="expected a folder for a table whose path"):
        RunRequest.parse(annotations_uri="weak.json", images_uri="images", output_uri=uri)
    with pytest.raises(ConfigError, match="expected a folder for a table whose path"):
        open_table(uri)


@pytest.mark.parametrize("name", ["a b", "100%", "tàble", "a'b", "a+b=c,d;e@f&g~h!i(j){k}", ".."])
def test_a_table_with_another_name_is_not(name: str, tmp_path: Path) -> None:
    RunRequest.parse(annotations_uri="weak.json", images_uri="images", output_uri=f"{tmp_path}/{name}")
    assert open_table(f"{tmp_path}/{name}") is None


@pytest.mark.parametrize(
    ("annotations", "written"),
    [
        ("/lake/labels", "/lake/labels/table"),
        ("/lake/labels/", "/lake/labels"),
        ("/lake/labels", "/lake/other/../labels/table"),
        ("/lake/a.json,b=/lake/labels", "/lake/labels/deep/table"),
        ("s3://lake/labels", "s3://lake/labels/table"),
        ("/lake/labels/**/*.json", "/lake/labels/table"),
    ],
)
def test_what_would_be_read_as_annotations_by_the_next_night_is_refused(annotations: str, written: str) -> None:
    with pytest.raises(ConfigError, match="expected a place outside of the annotations' folder"):
        check_apart(annotations, written)


@pytest.mark.parametrize(
    ("annotations", "written"),
    [
        ("/lake/labels/weak.json", "/lake/labels/table"),
        ("/lake/labels", "/lake/labels-table"),
        ("/lake/labels/*.json", "/lake/labels/table"),
        ("s3://lake/labels", "s3://lake/table"),
    ],
)
def test_what_lies_beside_annotations_is_not(annotations: str, written: str) -> None:
    check_apart(annotations, written)


@pytest.mark.parametrize("text", ["20251123", "2025-W47-7", "2025-11-23T00:00", "23.11.2025", ""])
def test_a_logical_date_has_one_form(text: str) -> None:
    check_logical_date("2025-11-23")
    with pytest.raises(ConfigError, match="logical date: expected YYYY-MM-DD, got"):
        check_logical_date(text)
    with pytest.raises(ConfigError, match="--from: expected YYYY-MM-DD, got"):
        days(text, "2025-11-23")


def test_dates_of_millennia_are_a_mistyped_year() -> None:
    with pytest.raises(ConfigError, match="expected at most 3660 days"):
        days("0001-01-01", "9999-12-31")


@pytest.mark.parametrize("hours", [1e300, 1e9, float("inf"), float("nan"), -1.0])
def test_a_retention_of_ages_is_refused(hours: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a number from 0 to 1,000,000"):
        vacuum(str(tmp_path), retention_hours=hours)
