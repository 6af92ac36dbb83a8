"""Tell people and automations how a published run went: artifacts, an event, and a green or red flow run."""

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


def conclude(summary: RunSummary, config: RunConfig, report_uri: str | None = None) -> None:
    """Create the artifacts of a published run, announce a regression, and raise an error when the run is red.

    report_uri: where the HTML report of the table is written, with an artifact that sums it up and links to it; None
    writes no report. The report shows up to 2,000 prompts on their images. A report that cannot be written is only a
    warning, because the masks are published.
    Raises `InputError` for too many failed prompts and, with `regression.fail`, for a regression. A run that had
    nothing to do raises it too, so that running a red night again does not turn it green.
    """
    comparison = compare_nights(summary.table_uri, summary.run_id, config.regression)
    create_markdown_artifact(f"{summary.markdown()}\n\n{comparison.markdown()}", key="refine-summary")
    if not summary.up_to_date:
        _tell_of_regressions(comparison)
        if report_uri is not None:
            _write_report(summary.table_uri, report_uri)
    check_failures(summary, config.max_failed_fraction)
    check_regressions(comparison, config.regression)


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
        get_run_logger().warning("The report was not written: %s", error)
        return
    link = report_uri if "://" in report_uri else Path(report_uri).absolute().as_uri()
    create_markdown_artifact(f"[Report: every mask on its image](<{link}>)\n\n{summed_up}", key="refine-report")
