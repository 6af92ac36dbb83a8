"""`stable-sam refine`: the whole job, from weak annotations to the masks table."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import (
    Annotations,
    Config,
    FileFormat,
    FollowLinks,
    ImageIndex,
    Images,
    Model,
    Output,
    read_settings,
)
from flows.commands.printed import print_plan, print_profile, print_summary
from flows.prefect_setup import start_prefect
from stable_sam.errors import ConfigError


def refine(
    annotations: Annotations,
    images: Images,
    output: Output,
    model: Model = None,
    config: Config = None,
    file_format: FileFormat = None,
    follow_links: FollowLinks = False,
    image_index: ImageIndex = None,
    logical_date: Annotated[str | None, typer.Option(help="The night this run stands for, YYYY-MM-DD.")] = None,
    refresh: Annotated[
        list[str] | None,
        typer.Option(help="Refine again what did not change: failed; model (by other weights or settings); or all."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Look only at files modified since then (YYYY-MM-DD, UTC); nothing is withdrawn."),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="COCO instances with true masks of some images: the night is scored.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Print where the time went, and write a Chrome trace to this JSON file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Refine weak boxes and points to masks: what is new or changed since the last run, one table row for each prompt.

    Run again after a kill: it takes up.
    """
    from stable_sam.runs.preflight import check_run
    from stable_sam.runs.request import RunRequest

    if profile is not None and dry_run:
        raise ConfigError("--profile: expected a run to profile, got --dry-run, which does none")
    settings = read_settings(config, model, file_format, follow_links=follow_links)
    if truth is not None:
        settings = settings.model_copy(update={"truth_uri": truth})
    request = RunRequest.parse(
        annotations_uri=annotations,
        images_uri=images,
        output_uri=output,
        config=settings,
        image_index_uri=image_index,
        logical_date=logical_date,
        refresh=refresh,
        since=since,
    )
    check_run(request, writes=not dry_run)
    if dry_run:
        from stable_sam.runs.plan import check_withdrawn, plan_request

        plan = plan_request(request, dry_run=True)
        print_plan(plan)
        check_withdrawn(plan)
        return
    start_prefect()
    from flows.refine import refine_dataset

    summary = refine_dataset(**request.parameters(), profile_uri=profile)
    print_summary(summary)
    if profile is not None:
        print_profile(summary, profile)
