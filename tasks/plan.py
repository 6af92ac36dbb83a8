"""First task: from annotations to a stored plan of shards."""

from __future__ import annotations

from prefect import task

from stable_sam.config import RunConfig
from stable_sam.data.annotations import read_prompts
from stable_sam.data.manifest import plan_run
from stable_sam.data.storage import check_output
from stable_sam.identity import model_identity


@task(task_run_name="plan {annotations_uri}")
def plan(
    annotations_uri: str,
    images_uri: str,
    output_uri: str,
    config: RunConfig,
    image_index_uri: str | None,
    logical_date: str | None,
) -> str | None:
    """Store the run's manifest and shards under `output_uri`; returns the manifest's URI, or None when up to date."""
    check_output(output_uri)
    manifest = plan_run(
        read_prompts(annotations_uri, images_uri=images_uri, image_index_uri=image_index_uri),
        annotations_uri=annotations_uri,
        images_uri=images_uri,
        output_uri=output_uri,
        config=config,
        model=model_identity(config.refiner),
        logical_date=logical_date,
    )
    return None if manifest is None else manifest.uri
