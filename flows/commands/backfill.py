"""`stable-sam backfill`: run past nights, one run for each logical date, oldest first."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import (
    Checkpoint,
    Config,
    FileFormat,
    FollowLinks,
    Model,
    Output,
    Plugin,
    read_config,
)
from flows.commands.printed import print_summary
from flows.prefect_setup import resumable, start_prefect


def backfill(
    first: Annotated[str, typer.Option("--from", help="First logical date, YYYY-MM-DD.")],
    last: Annotated[str, typer.Option("--to", help="Last logical date, YYYY-MM-DD, included.")],
    annotations: Annotated[
        str, typer.Option(help="Annotations, as for `stable-sam refine`. {date} is replaced by the logical date.")
    ],
    images: Annotated[
        str, typer.Option(help="Folder of the images (path or URI). {date} is replaced by the logical date.")
    ],
    output: Output,
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Config = None,
    file_format: FileFormat = None,
    follow_links: FollowLinks = False,
    image_index: Annotated[
        str | None,
        typer.Option(
            help="COCO JSON (path or URI) that gives the file name of each image id. {date} is replaced by the logical "
            "date."
        ),
    ] = None,
) -> None:
    """Run one night for each logical date, oldest first. Dates that the table already holds are skipped.

    If the command is interrupted, run it again: it continues where it stopped.
    """
    from rich.console import Console

    from stable_sam.errors import ConfigError
    from stable_sam.formats.sources import check_annotations
    from stable_sam.runs.backfill import DATE, check_order, days, in_force
    from stable_sam.runs.plan import plan_request
    from stable_sam.runs.preflight import check_run
    from stable_sam.runs.request import RunRequest
    from stable_sam.table.log import list_runs, open_table

    dates = days(first, last)
    if len(dates) > 1 and DATE not in annotations + images:
        raise ConfigError(
            f"backfill: expected {DATE} in --annotations or --images, because otherwise every date has the same source"
        )
    run_config = read_config(
        config, model, file_format, follow_links=follow_links, checkpoint=checkpoint, plugin=plugin
    )
    nights = {
        day: RunRequest.parse(
            annotations_uri=annotations.replace(DATE, day),
            images_uri=images.replace(DATE, day),
            output_uri=output,
            config=run_config,
            image_index_uri=None if image_index is None else image_index.replace(DATE, day),
            logical_date=day,
        )
        for day in dates
    }
    for request in nights.values():
        check_annotations(request.annotations_uri, follow_links=run_config.source.follow_links)
    table = open_table(output)
    runs = [] if table is None else list_runs(table)
    console = Console(stderr=True)
    started = False
    for day, request in nights.items():
        # Once one date has been run, the table holds its content and no longer that of later dates.
        stood = None if started else in_force(runs, day)
        if stood is not None and stood.source_hash == plan_request(request, dry_run=True).source_hash:
            console.print(f"{day}: already in the table, run {stood.run_id}")
            continue
        check_run(request)
        if not started:
            check_order(runs, day, last)
            start_prefect()
            started = True
        from flows.refine import refine_dataset

        with resumable():
            summary = refine_dataset(**request.parameters())
        print_summary(summary)
