"""`stable-sam vacuum`: remove the files that no reader and no run needs any more."""

from __future__ import annotations

from typing import Annotated

import typer


def vacuum(
    table: Annotated[str, typer.Option(help="The URI given to refine as --output.")],
    retention_hours: Annotated[
        float, typer.Option(help="Versions younger than this stay readable, and younger files are not touched.")
    ] = 168,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Allow less than 24 hours: only while nothing else uses the table.")
    ] = False,
) -> None:
    """Remove parts of dead writers, files that compact replaced, and folders of runs that are over."""
    from stable_sam.runs.vacuum import vacuum as run_vacuum
    from stable_sam.storage.files import absolute_uri

    report = run_vacuum(absolute_uri(table), retention_hours=retention_hours, dry_run=dry_run, force=force)
    for file in report.files:
        typer.echo(f"{file.size:>15,}  {file.path}")
    counts = f"{len(report.parts)} parts, {len(report.runs)} files of runs, {len(report.leftovers)} leftovers"
    typer.echo(f"{'Would remove' if dry_run else 'Removed'} {counts}: {report.size:,} bytes.")
