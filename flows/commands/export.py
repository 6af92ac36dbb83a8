"""`stable-sam export`: write masks of a table in the format of another tool."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Table


def export(
    table: Table,
    to: Annotated[
        str,
        typer.Option(
            help="Format to write: coco, coco-results, yolo, labelstudio, cvat, labelme, png, fiftyone or parquet (a "
            "Hugging Face dataset)."
        ),
    ],
    out: Annotated[str, typer.Option(help="New or empty folder to write to (path or URI).")],
    where: Annotated[
        str | None,
        typer.Option(help="Only masks that meet this SQL condition on the view masks, such as \"category = 'cat'\"."),
    ] = None,
    routes: Annotated[
        str | None,
        typer.Option(help="Only masks of these routes, several separated by commas: accept, review or reject."),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            help="Only a random part of the masks, such as 0.05, for `calibrate --sample`; the same part every time."
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Export the table as it was then: a run_id, a version, or an ISO date or time (UTC).", metavar="WHEN"
        ),
    ] = None,
    polygons: Annotated[
        bool | None,
        typer.Option(
            "--polygons/--masks",
            help="Write polygons or masks, where the format has both; by default polygons for labelme. Masks with "
            "holes are never written as polygons.",
        ),
    ] = None,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="Copy the images into the folder; by default for coco, yolo, labelme and parquet.",
        ),
    ] = None,
    image_prefix: Annotated[
        str | None, typer.Option(help="Address under which the tool finds the images, such as https://host/images/.")
    ] = None,
    local_files_root: Annotated[
        str | None,
        typer.Option(
            help="Folder that Label Studio's local storage shows (LOCAL_FILES_DOCUMENT_ROOT), with the images."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Divide the images of a yolo export into train and val (and test), such as 0.8/0.2; an image always "
            "gets into the same part."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Tool that is to find the files of a coco export by itself: datumaro or fiftyone."),
    ] = None,
) -> None:
    """Write the current masks for an annotation tool or for training, with a list of the masks that were sent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stable_sam.review.export import export as run_export
    from stable_sam.storage.uris import absolute_uri
    from stable_sam.wording import counted

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        report = run_export(
            absolute_uri(table),
            to,
            absolute_uri(out),
            where=where,
            routes=[route.strip() for route in (routes or "").split(",") if route.strip()],
            sample=sample,
            as_of=as_of,
            polygons=polygons,
            copy_images=images,
            image_prefix=image_prefix,
            local_files_root=local_files_root,
            split=split,
            layout=layout,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in report.problems:
        typer.echo(f"left out: {problem}", err=True)
    if report.warning is not None:
        typer.echo(f"warning: {report.warning}", err=True)
    without = ""
    if report.without_mask:
        rows = counted(report.without_mask, "row without a mask was", "rows without a mask were")
        without = f" {rows} left out."
    masks, images_written = counted(report.objects, "mask"), counted(report.images, "image")
    typer.echo(f"{masks} of {images_written} written to {out} ({to}).{without}")
