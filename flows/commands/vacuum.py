"""`stable-sam vacuum`: remove the files of a table that no reader and no run needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Table


def vacuum(
    table: Table,
    retention_hours: Annotated[
        float,
        typer.Option(help="Age in hours from which files are removed. Younger versions of the table stay readable."),
    ] = 168,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Allow a --retention-hours of less than 24. This is safe only while nothing else uses the table.",
        ),
    ] = False,
) -> None:
    """Remove files that interrupted runs left, files that compact replaced, and work files of finished runs."""
    from stable_sam.runs.vacuum import vacuum as run_vacuum
    from stable_sam.storage.uris import absolute_uri
    from stable_sam.wording import counted

    report = run_vacuum(absolute_uri(table), retention_hours=retention_hours, dry_run=dry_run, force=force)
    for file in report.files:
        typer.echo(f"{file.size:>15,}  {file.path}")
    counts = (
        f"{counted(len(report.parts), 'part')}, {counted(len(report.runs), 'file of runs', 'files of runs')}, "
        f"{counted(len(report.leftovers), 'leftover')}"
    )
    typer.echo(f"{'Would remove' if dry_run else 'Removed'} {counts}: {counted(report.size, 'byte')}.")
