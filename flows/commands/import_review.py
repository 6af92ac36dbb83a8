"""`stable-sam import-review`: read reviewed masks back into the table."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Table


def import_review(
    table: Table,
    source: Annotated[
        str, typer.Option("--from", help="File or folder that came back from the annotation tool (path or URI).")
    ],
    form: Annotated[
        str, typer.Option("--format", help="Format of the files: coco, labelstudio, cvat, labelme, yolo or png.")
    ],
    sent: Annotated[
        str | None,
        typer.Option(
            help="Folder that `stable-sam export` wrote (path or URI), when its list of sent masks is not beside the "
            "files."
        ),
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option(help="Name of the reviewer. The imported rows have the model_id review:NAME.")
    ] = None,
    confirm_unchanged: Annotated[
        bool,
        typer.Option("--confirm-unchanged", help="Import masks that came back unchanged as confirmed by the reviewer."),
    ] = False,
    unchanged_iou: Annotated[
        float,
        typer.Option(
            help="Smallest IoU of a mask with the sent one at which it counts as unchanged. Use less than 1 for a tool "
            "that redraws masks."
        ),
    ] = 1.0,
    max_rejected: Annotated[
        float,
        typer.Option(help="Refuse to import when more than this part of the masks was deleted, of 20 masks or more."),
    ] = 0.5,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Import although a run is going on, which then fails and has to be started again."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and write nothing.")] = False,
) -> None:
    """Import masks that people corrected, confirmed or deleted. Later runs keep them as they are."""
    from stable_sam.review.import_review import import_review as run_import
    from stable_sam.storage.uris import absolute_uri

    report = run_import(
        absolute_uri(table),
        absolute_uri(source),
        form,
        sent_uri=None if sent is None else absolute_uri(sent),
        reviewer=reviewer,
        confirm_unchanged=confirm_unchanged,
        unchanged_iou=unchanged_iou,
        max_rejected_fraction=max_rejected,
        dry_run=dry_run,
        force=force,
    )
    for problem in report.problems:
        typer.echo(f"not imported: {problem}", err=True)
    counts = f"{report.corrected} corrected, {report.confirmed} confirmed, {report.rejected} rejected"
    left = f"{report.unchanged} unchanged, {report.already} already in the table, {len(report.problems)} not imported"
    if dry_run:
        typer.echo(f"Dry run: nothing was written. {counts}; {left}.")
    elif report.run_id is None:
        typer.echo(f"Nothing to import: {left}.")
    else:
        typer.echo(f"Run {report.run_id}: {counts}; {left}.")
