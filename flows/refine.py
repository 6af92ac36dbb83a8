"""The main flow: it refines the weak prompts of a dataset to one published version of the masks table.

    plan -> refine -> publish

The flow may be killed at any instant and run again: see `stable_sam.runs.commits`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow, runtime

from flows.killed_runs import end_with_worker
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
    """Bring the table at `output_uri` up to date with the annotations, by one new version of the table.

    Prompts that are new or changed are refined, prompts that are no longer annotated get a tombstone row, and all
    others stay as they are.

    config: a `RunConfig` as a mapping, or the path of a YAML file with one; None takes the defaults.
    logical_date: ISO date of the night that this run stands for; None takes the scheduled date, when a deployment
    started the run.
    timezone: IANA name of the zone in which the scheduled date and `since` are read: the zone of the schedule.
    refresh: unchanged prompts that are refined again: `failed` prompts; prompts refined by another `model`, which means
    other weights or another config; or `all`, which adds prompts refined by another version of this software. A list,
    or a text with commas.
    since: ISO date or time. If no annotation file was modified since then, only prompts whose image was modified since
    then are compared. No prompt is withdrawn.
    report_uri: where the HTML report of the table is written after a run that changed something; None writes none.
    profile_uri: where a Chrome trace of every actor's work is written, even when the run fails; None writes none. It
    changes no row. The seconds of the stages are in the table's view `runs` either way.

    Raises `StableSamError`. A bad image or prompt becomes a failed row instead. After publishing, an `InputError` is
    raised when too many prompts failed (`max_failed_fraction`), when all did, and for a regression where
    `regression.fail` is set.
    """
    log_user_errors_in_one_line()
    if runtime.deployment.id is not None:
        end_with_worker(runtime.flow_run.id)
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
        raise NotFoundError(f"{table_uri}: expected a masks table, found none, and the source has no prompt to refine")
    return summarize(table_uri, newest.run_id, up_to_date=True, changes=changes)
