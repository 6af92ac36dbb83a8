"""`stable-sam compact`: many small files of a table become a few large ones."""

from __future__ import annotations

from typing import Annotated

import typer


def compact(
    table: Annotated[str, typer.Option(help="The URI given to refine as --output.")],
    target_mb: Annotated[int, typer.Option(min=1, help="Size of a file in MiB; it is built in memory.")] = 128,
) -> None:
    """Make queries fast again after many nights: fewer files, current rows apart from past ones. Runs beside refine."""
    from stable_sam.runs.compact import compact as run_compact
    from stable_sam.storage.files import absolute_uri

    report = run_compact(absolute_uri(table), target_bytes=target_mb * 2**20)
    if report.version is None:
        typer.echo("Nothing to compact.")
        return
    typer.echo(
        f"{report.files_before} files ({report.bytes_before:,} bytes) became {report.files_after} "
        f"({report.bytes_after:,} bytes) with {report.rows:,} rows, version {report.version}. "
        "The old files stay for older versions until stable-sam vacuum."
    )
