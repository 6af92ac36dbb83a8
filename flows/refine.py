"""The main flow: weak prompts of a dataset to one published version of the masks table.

    plan -> refine -> publish

Safe to run twice, to kill and to run again: see `stable_sam.data.commits`. Parameters are URIs and a configuration.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from prefect import flow, runtime

from flows.outcome import conclude
from flows.user_errors import log_user_errors_in_one_line
from stable_sam.config import RunConfig
from stable_sam.data.annotation_files import absolute_annotations
from stable_sam.data.runs import newest_run
from stable_sam.data.storage import absolute_uri
from stable_sam.errors import NotFoundError, StorageError
from stable_sam.preflight import check_logical_date, day_of, refresh_reasons, since_moment
from stable_sam.records import Changes
from stable_sam.stage_clock import SPANS_OF_AN_IMAGE, StageClock, Times, timed
from stable_sam.summary import RunSummary, summarize
from stable_sam.trace import write_trace
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
    or nothing else, is an `InputError` after they are published; so is a regression, with `quality.fail`.
    """
    log_user_errors_in_one_line()
    check_logical_date(logical_date)
    scheduled_day = day_of(_scheduled_start(), timezone)
    reasons, moment = refresh_reasons(refresh), since_moment(since, timezone)
    settings = RunConfig.from_dict(config or {}) if not isinstance(config, str) else RunConfig.from_yaml(config)
    ray = settings.ray
    if profile_uri is not None:
        write_trace(profile_uri, Times(seconds={}))  # before the work: a place that cannot be written to
        ray = ray.model_copy(update={"profile": True})
    # Actors and later readers may stand in another folder.
    table_uri = absolute_uri(output_uri)
    clock = StageClock(spans=SPANS_OF_AN_IMAGE)
    manifest_uri = None
    try:
        with clock:
            with timed("plan"):
                planned = plan(
                    annotations_uri=absolute_annotations(annotations_uri),
                    images_uri=absolute_uri(images_uri),
                    output_uri=table_uri,
                    config=settings,
                    image_index_uri=image_index_uri,
                    logical_date=logical_date or scheduled_day,
                    refresh=reasons,
                    since=moment,
                )
            manifest_uri = planned.manifest_uri
            if manifest_uri is None:
                summary = _up_to_date(table_uri, planned.changes)
            else:
                with timed("refine"):
                    done = refine(manifest_uri, ray=ray, device=settings.refiner.device)
                with timed("publish"):
                    run_id = publish(manifest_uri, commit_seconds=done.commit_seconds)
                speed = done.images / done.actor_seconds if done.actor_seconds else None
                summary = summarize(
                    table_uri, run_id, images=done.images, images_per_second=speed, changes=planned.changes
                )
        conclude(summary, settings, report_uri)
    except BaseException:
        if profile_uri is not None:
            with suppress(StorageError):  # what ended the run is what must be said
                write_trace(profile_uri, clock.times(), manifest_uri)
        raise
    if profile_uri is not None:
        write_trace(profile_uri, clock.times(), manifest_uri)
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
