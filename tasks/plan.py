"""First task: from annotations to a stored plan of what has to be done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from prefect import task

from stable_sam.calibration.load import calibrated_run
from stable_sam.config import RunConfig
from stable_sam.data.annotations import read_prompt_batches
from stable_sam.data.planning import plan_night
from stable_sam.data.storage import check_output
from stable_sam.identity import model_identity
from stable_sam.records import Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a night has to do."""

    manifest_uri: str | None
    """None: nothing."""
    changes: Changes


@task(task_run_name="plan {annotations_uri}")
def plan(
    annotations_uri: str,
    images_uri: str,
    output_uri: str,
    config: RunConfig,
    image_index_uri: str | None,
    logical_date: str | None,
    refresh: frozenset[str],
    since: datetime | None,
) -> PlanReport:
    """Compare the source with the table and store the run's manifest and shards under `output_uri`."""
    check_output(output_uri)
    model = model_identity(config.refiner)
    night = plan_night(
        lambda: read_prompt_batches(
            annotations_uri, images_uri=images_uri, image_index_uri=image_index_uri, source=config.source
        ),
        annotations_uri=annotations_uri,
        images_uri=images_uri,
        output_uri=output_uri,
        config=calibrated_run(config, model),
        model=model,
        image_index_uri=image_index_uri,
        logical_date=logical_date,
        refresh=refresh,
        since=since,
    )
    return PlanReport(manifest_uri=night.manifest.uri if night.manifest else None, changes=night.changes)
