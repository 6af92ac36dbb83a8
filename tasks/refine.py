"""The second Prefect task of a run: actors refine every planned shard and commit its part of the table."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from prefect import task

from stable_sam.config import RayConfig
from stable_sam.errors import StorageError
from stable_sam.records import ShardReport
from stable_sam.runs.commits import committed, write_tombstones
from stable_sam.runs.manifest import read_manifest
from stable_sam.wording import counted
from tasks.actors.run import run_shards
from tasks.actors.shard_actor import ShardFailure
from tasks.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineReport:
    """What this driver did, without the shards that were committed before."""

    images: int
    """Number of refined images."""
    actor_seconds: float
    """Seconds that actors spent on these images, summed over the actors, without loading the model."""
    commit_seconds: float
    """Seconds that writing the commit records took. The records themselves cannot say, because they are written
    before."""


@task(task_run_name="refine {manifest_uri}")
def refine(manifest_uri: str, ray: RayConfig, device: str) -> RefineReport:
    """Refine the shards that are not committed yet, and write the tombstones of withdrawn prompts.

    ray, device: where this driver refines. They may differ from those that the run was planned with, and change no row.
    Raises `StorageError` when a shard could not be finished.
    """
    manifest = read_manifest(manifest_uri)
    done = committed(manifest)
    missing = [shard for shard in manifest.shards if shard.shard_id not in done]
    for tombstones in manifest.tombstones:
        if tombstones.shard_id not in done:
            write_tombstones(manifest, tombstones)
    failures: list[ShardFailure] = []
    images, seconds, commit_seconds = 0, 0.0, 0.0
    before = manifest.images - sum(shard.images for shard in missing)
    with (
        Progress(total_images=manifest.images, done_images=before) as progress,
        # An interrupt that comes outside of Ray ends Ray, too, before it goes on.
        closing(run_shards(manifest_uri, missing, ray, device=device)) as outcomes,
    ):
        for outcome in outcomes:
            match outcome:
                case ShardReport():
                    images, seconds = images + outcome.images, seconds + outcome.seconds
                    commit_seconds += outcome.stage_seconds.get("commit", 0.0)
                    progress.advance(outcome)
                case ShardFailure():
                    failures.append(outcome)
    if failures:
        raise StorageError(
            f"{manifest_uri}: {len(failures)} of {counted(len(manifest.shards), 'shard')} could not be finished. The "
            f"others are kept: run the same command again to continue. First error: {failures[0].error}"
        )
    return RefineReport(images=images, actor_seconds=seconds, commit_seconds=commit_seconds)
