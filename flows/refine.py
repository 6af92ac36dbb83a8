"""The main flow: weak prompts of a dataset to one published version of the masks table.

    plan -> refine -> publish

Safe to run twice, to kill and to run again: see `stable_sam.runs.commits`. Parameters are URIs and a configuration.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow, runtime

from flows.outcome import conclude
from flows.prefect_setup import log_user_errors_in_one_line
from stable_sam.errors import NotFoundError
from stable_sam.records import Changes
from stable_sam.runs.request import RunRequest
from stable_sam.runs.summary import RunSummary, summarize
from stable_sam.runs.trace import traced
from stable_sam.table.log import newest_run
from stable_sam.timing import timed
from tasks.plan import plan
from tasks.publish import publish
from tasks.refine import refine


@flow(name="refine-dataset")
def refine_dataset(
    annotations_uri: str,
    images_uri: str,
    output_uri: str,
    config: dict[str, Any] | str | None = None,
    image_index_uri: str | None = None,
    logical_date: str | None = None,
    timezone: str = "UTC",
    refresh: list[str] | str | None = None,
    since: str | None = None,
    report_uri: str | None = None,
    profile_uri: str | None = None,
) -> RunSummary:
    """Bring the table at `output_uri` up to `annotations_uri`, by one version: what is new or changed is refined, what
    is no longer there gets a tombstone, the rest stays as it is.

    config: a `RunConfig` as a mapping, or the path of a YAML file with one; None: the defaults.
    logical_date: ISO date of the night this run stands for; None: the scheduled one, when a deployment started the run.
    timezone: IANA name of the zone in which the scheduled date and `since` are read; give the schedule's own.
    refresh: what is refined again though it did not change: `failed` prompts; those by another `model` (weights or
    settings); or `all`, which is both and what another version of this software made. A list, or text with commas.
    since: ISO date or time; files that were modified before count as unchanged, and nothing is withdrawn.
    report_uri: HTML page of the table's worst prompts, written after a run that changed something; None writes none.
    profile_uri: Chrome trace of who did what when, also of a run that fails; changes no row. None writes none and keeps
    only the seconds of the stages, in `runs`.
    Raises `StableSamError`; a bad image or prompt is a failed row instead. Too many of those (`max_failed_fraction`),
    or nothing else, is an `InputError` after they are published; so is a regression, with `regression.fail`.
    """
    log_user_errors_in_one_line()
    request = RunRequest.parse(
        annotations_uri=annotations_uri,
        images_uri=images_uri,
        output_uri=output_uri,
        config=config,
        image_index_uri=image_index_uri,
        logical_date=logical_date,
        timezone=timezone,
        refresh=refresh,
        since=since,
        scheduled=_scheduled_start(),
    )
    ray = request.config.ray
    if profile_uri is not None:
        ray = ray.model_copy(update={"profile": True})
    with traced(profile_uri) as trace:
        with timed("plan"):
            planned = plan(request)
        manifest_uri = trace.manifest_uri = planned.manifest_uri
        if manifest_uri is None:
            summary = _up_to_date(request.output_uri, planned.changes)
        else:
            with timed("refine"):
                done = refine(manifest_uri, ray=ray, device=request.config.refiner.device)
            with timed("publish"):
                run_id = publish(manifest_uri, commit_seconds=done.commit_seconds)
            speed = done.images / done.actor_seconds if done.actor_seconds else None
            summary = summarize(
                request.output_uri, run_id, images=done.images, images_per_second=speed, changes=planned.changes
            )
        conclude(summary, request.config, report_uri)
    return summary


def _scheduled_start() -> datetime | None:
    if runtime.deployment.id is None:
        return None
    start: datetime = runtime.flow_run.scheduled_start_time
    return start


def _up_to_date(table_uri: str, changes: Changes) -> RunSummary:
    newest = newest_run(table_uri)
    if newest is None:
        raise NotFoundError(f"{table_uri}: expected a masks table to be up to date, found none: nothing was planned")
    return summarize(table_uri, newest.run_id, up_to_date=True, changes=changes)
