"""First task: from annotations to a stored plan of what has to be done."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import task

from stable_sam.records import Changes
from stable_sam.runs.plan import plan_request
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import check_output


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a night has to do."""

    manifest_uri: str | None
    """None: nothing."""
    changes: Changes


@task(task_run_name="plan {request.annotations_uri}")
def plan(request: RunRequest) -> PlanReport:
    """Compare the source with the table and store the run's manifest and shards under the output."""
    check_output(request.output_uri)
    night = plan_request(request)
    return PlanReport(manifest_uri=night.manifest.uri if night.manifest else None, changes=night.changes)
