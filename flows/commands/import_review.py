"""`stable-sam import-review`: corrected masks into the table."""

from __future__ import annotations

from typing import Annotated

import typer


def import_review(
    table: Annotated[str, typer.Option(help="The URI given to refine as --output.")],
    source: Annotated[str, typer.Option("--from", help="File or folder that came back, local or s3://.")],
    form: Annotated[str, typer.Option("--format", help="coco, labelstudio, cvat, labelme, yolo or png.")],
    sent: Annotated[
        str | None, typer.Option(help="The folder of the export, when its list does not lie beside the files.")
    ] = None,
    reviewer: Annotated[str | None, typer.Option(help="Who: stands in the rows as model_id review:NAME.")] = None,
    confirm_unchanged: Annotated[
        bool, typer.Option("--confirm-unchanged", help="Masks that are as they were sent are right.")
    ] = False,
    unchanged_iou: Annotated[
        float, typer.Option(help="A mask is as it was sent from this IoU on; below 1 where the tool draws masks anew.")
    ] = 1.0,
    max_rejected: Annotated[
        float, typer.Option(help="Refuse files that delete more than this part of 20 masks or more.")
    ] = 0.5,
    force: Annotated[
        bool, typer.Option("--force", help="Import beside a running night, which then has to start again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported; write nothing.")] = False,
) -> None:
    """Bring corrected, confirmed and deleted masks back; later nights leave them as they are."""
    from stable_sam.review.import_review import import_review as run_import
    from stable_sam.storage.files import absolute_uri

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
    left = f"{report.unchanged} unchanged, {report.already} in the table already, {len(report.problems)} not imported"
    if dry_run:
        typer.echo(f"Dry run: nothing was written. {counts}; {left}.")
    elif report.run_id is None:
        typer.echo(f"Nothing to import: {left}.")
    else:
        typer.echo(f"Run {report.run_id}: {counts}; {left}.")
