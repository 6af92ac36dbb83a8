"""The first Prefect task of a run: compare the annotations with the table, and store a plan of what has to be done."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import task

from stable_sam.records import Changes
from stable_sam.runs.plan import plan_request
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import check_output


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a run has to do."""

    manifest_uri: str | None
    """URI of the run's manifest; None when there is nothing to do."""
    changes: Changes
    """Number of prompts that are new, changed, withdrawn and unchanged."""


@task(task_run_name="plan {request.annotations_uri}")
def plan(request: RunRequest) -> PlanReport:
    """Compare the annotations with the table, and store the manifest and the shards of the run under its output."""
    check_output(request.output_uri)
    planned = plan_request(request)
    return PlanReport(manifest_uri=planned.manifest.uri if planned.manifest else None, changes=planned.changes)
