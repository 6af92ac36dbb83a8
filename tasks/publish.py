"""The last Prefect task of a run: publish the committed parts as one version of the table."""

from __future__ import annotations

from prefect import task

from stable_sam.runs import publish as table
from stable_sam.runs.manifest import read_manifest


@task(task_run_name="publish {manifest_uri}")
def publish(manifest_uri: str, commit_seconds: float = 0.0) -> str:
    """Publish the run, and return its run_id.

    commit_seconds: `RefineReport.commit_seconds`. Raises `ConservationError` unless every prompt has exactly one row.
    """
    manifest = read_manifest(manifest_uri)
    table.publish(manifest, commit_seconds=commit_seconds)
    return manifest.run_id
