"""What people and automations learn of a run that was published: artifacts, an event, green or red."""

from __future__ import annotations

from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger

from stable_sam.config import RunConfig
from stable_sam.errors import StableSamError
from stable_sam.runs.regression import NightComparison, check_regressions, compare_nights
from stable_sam.runs.summary import RunSummary, check_failures

REGRESSION_EVENT = "stable-sam.quality-regression"
"""Emitted once for each run that is worse than usual; deployments/automations.yaml turns it into a notification."""


def conclude(summary: RunSummary, settings: RunConfig, report_uri: str | None = None) -> None:
    """Leave the artifacts of a run, tell when it is worse than those before it, and raise when it is red.

    report_uri: where to write the HTML page of the table, beside an artifact that sums it up and links to it; None
    writes none. It opens the pictures of up to 2,000 prompts. A page that cannot be written is a warning, for the masks
    are published.
    Raises `InputError` for too many failed prompts, or (`regression.fail`) for a run that is worse than usual: also for
    one that had nothing to do, so that running a red night again does not turn it green.
    """
    comparison = compare_nights(summary.table_uri, summary.run_id, settings.regression)
    create_markdown_artifact(f"{summary.markdown()}\n\n{comparison.markdown()}", key="refine-summary")
    if not summary.up_to_date:
        _tell_of_regressions(comparison)
        if report_uri is not None:
            _write_report(summary.table_uri, report_uri)
    check_failures(summary, settings.max_failed_fraction)
    check_regressions(comparison, settings.regression)


def _tell_of_regressions(comparison: NightComparison) -> None:
    if not comparison.regressions:
        return
    for line in comparison.regressions:
        get_run_logger().warning("Worse than usual: %s", line)
    emit_event(
        REGRESSION_EVENT,
        resource={
            "prefect.resource.id": f"stable-sam.table.{comparison.table_uri}",
            "prefect.resource.name": comparison.table_uri,
        },
        payload={"run_id": comparison.run_id, "regressions": list(comparison.regressions)},
    )


def _write_report(table_uri: str, report_uri: str) -> None:
    from stable_sam.report.digest import digest
    from stable_sam.report.write import write_report

    try:
        write_report(table_uri, report_uri)
        summed_up = digest(table_uri)
    except StableSamError as error:
        get_run_logger().warning("No report: %s", error)
        return
    link = report_uri if "://" in report_uri else Path(report_uri).absolute().as_uri()
    create_markdown_artifact(f"[Report: every mask on its picture](<{link}>)\n\n{summed_up}", key="refine-report")
