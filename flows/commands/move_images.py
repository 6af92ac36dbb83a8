"""`stable-sam move-images`: tell a table that its images lie elsewhere now."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import FollowLinks


def move_images(
    table: Annotated[str, typer.Option(help="URI of the masks table: the --output of refine.")],
    to: Annotated[str, typer.Option(help="Folder in which the images lie now.")],
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Folder of the images in the table's rows. By default that of the newest run."),
    ] = None,
    follow_links: FollowLinks = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the rows, and write nothing.")] = False,
) -> None:
    """Say that the images were moved or copied: they are the same images, and nothing is refined again.

    Each row whose image has the same path below the new folder gets the new place. The command may run at the same time
    as refine.
    """
    from stable_sam.runs.move_images import move_images as run_move_images
    from stable_sam.storage.uris import absolute_uri
    from stable_sam.wording import counted

    report = run_move_images(absolute_uri(table), to_uri=to, from_uri=from_, follow_links=follow_links, dry_run=dry_run)
    done = "to move" if report.version is None else f"moved, version {report.version} of the table"
    typer.echo(f"{counted(report.rows, 'row')} {done}: from {report.from_uri} to {report.to_uri}.")
    if report.missing:
        typer.echo(f"Not moved: {counted(report.missing, 'row')}, whose images are not below {report.to_uri}.")
