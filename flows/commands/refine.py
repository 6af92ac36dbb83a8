"""`stable-sam refine`: refine weak annotations to a new version of the masks table."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import (
    Annotations,
    Checkpoint,
    Config,
    FileFormat,
    FollowLinks,
    ImageIndex,
    Images,
    Model,
    Output,
    Plugin,
    read_config,
)
from flows.commands.printed import print_plan, print_profile, print_summary
from flows.prefect_setup import resumable, start_prefect
from stable_sam.errors import ConfigError


def refine(
    annotations: Annotations,
    images: Images,
    output: Output,
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Config = None,
    file_format: FileFormat = None,
    follow_links: FollowLinks = False,
    image_index: ImageIndex = None,
    logical_date: Annotated[
        str | None, typer.Option(help="Date of the night that this run stands for, YYYY-MM-DD; none by default.")
    ] = None,
    refresh: Annotated[
        list[str] | None,
        typer.Option(
            help="Refine unchanged prompts again: failed, those that failed; model, those refined with other weights "
            "or another config; all, both and those refined by another version of stable-sam. May be repeated."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Leave prompts alone unless an annotation file or their image was modified since this date or time "
            "(YYYY-MM-DD or YYYY-MM-DDTHH:MM, UTC). Nothing is withdrawn then."
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            help="COCO instances (path or URI) with true masks of some images, which the masks are compared with."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="JSON file to write a Chrome trace to (path or URI). The seconds of each stage are printed as well."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be refined, and write nothing.")] = False,
) -> None:
    """Refine weak boxes and points to masks, and write one table row for each prompt.

    Only prompts that are new or changed since the last run are refined. If the command is interrupted, run it again: it
    continues where it stopped.
    """
    from stable_sam.formats.sources import check_apart
    from stable_sam.runs.preflight import check_run
    from stable_sam.runs.request import RunRequest
    from stable_sam.storage.uris import absolute_uri

    if profile is not None and dry_run:
        raise ConfigError("--profile: expected a run to profile, got --dry-run, which runs nothing")
    run_config = read_config(
        config, model, file_format, follow_links=follow_links, checkpoint=checkpoint, plugin=plugin
    )
    if truth is not None:
        run_config = run_config.model_copy(update={"truth_uri": truth})
    request = RunRequest.parse(
        annotations_uri=annotations,
        images_uri=images,
        output_uri=output,
        config=run_config,
        image_index_uri=image_index,
        logical_date=logical_date,
        refresh=refresh,
        since=since,
    )
    if profile is not None:
        check_apart(request.annotations_uri, absolute_uri(profile))
    check_run(request, writes=not dry_run)
    if dry_run:
        from stable_sam.runs.plan import check_withdrawn, plan_request

        plan = plan_request(request, dry_run=True)
        print_plan(plan)
        check_withdrawn(plan)
        return
    start_prefect()
    from flows.refine import refine_dataset

    with resumable():
        summary = refine_dataset(**request.parameters(), profile_uri=profile)
    print_summary(summary)
    if profile is not None:
        print_profile(summary, profile)
