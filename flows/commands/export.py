"""`stable-sam export`: masks of a table for another tool."""

from __future__ import annotations

from typing import Annotated

import typer


def export(
    table: Annotated[str, typer.Option(help="The URI given to refine as --output.")],
    to: Annotated[
        str,
        typer.Option(help="coco, coco-results, yolo, labelstudio, cvat, labelme, png, fiftyone or parquet."),
    ],
    out: Annotated[str, typer.Option(help="New or empty folder, local or s3://.")],
    where: Annotated[str | None, typer.Option(help="SQL condition on the view masks: \"category = 'cat'\".")] = None,
    routes: Annotated[str | None, typer.Option(help="Only these, with commas: accept,review,reject.")] = None,
    sample: Annotated[
        float | None, typer.Option(help="Only a random part, such as 0.05; always the same one (see calibrate).")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="What readers saw then: a run_id, a version, or an ISO date or timestamp (UTC).", metavar="WHEN"
        ),
    ] = None,
    polygons: Annotated[
        bool | None, typer.Option("--polygons/--masks", help="Where the format has both; masks with holes stay masks.")
    ] = None,
    images: Annotated[
        bool | None, typer.Option("--images/--no-images", help="Copy the pictures into the folder.")
    ] = None,
    image_prefix: Annotated[
        str | None, typer.Option(help="Where the tool finds the pictures, such as https://host/images/.")
    ] = None,
) -> None:
    """Write the current masks for annotation tools and training, with a list of what was sent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stable_sam.review.export import export as run_export
    from stable_sam.storage.files import absolute_uri

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
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in report.problems:
        typer.echo(f"left out: {problem}", err=True)
    without = f" {report.without_mask} rows without a mask were left out." if report.without_mask else ""
    typer.echo(f"{report.objects} masks of {report.images} images written to {out} ({to}).{without}")
