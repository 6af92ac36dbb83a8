"""`stable-sam compact`: rewrite the many small files of a table as a few large ones."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Table


def compact(
    table: Table,
    target_mb: Annotated[int, typer.Option(min=1, help="Size of the new files in MiB. Each is built in memory.")] = 128,
) -> None:
    """Make queries fast again after many nights: rewrite the table as few files, current and past rows apart.

    The command may run at the same time as refine.
    """
    from stable_sam.runs.compact import compact as run_compact
    from stable_sam.storage.uris import absolute_uri
    from stable_sam.wording import counted

    report = run_compact(absolute_uri(table), target_bytes=target_mb * 2**20)
    if report.version is None:
        typer.echo("Nothing to compact.")
        return
    typer.echo(
        f"{counted(report.files_before, 'file')} ({report.bytes_before:,} bytes) became {report.files_after} "
        f"({report.bytes_after:,} bytes) with {counted(report.rows, 'row')}, version {report.version}. "
        "The old files are kept for older versions until `stable-sam vacuum` removes them."
    )
