"""`stable-sam report`: a masks table as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    table: Annotated[str, typer.Option(help="URI of the table: the --output of refine.")],
    out: Annotated[str, typer.Option(help="The page to write (path or URI).")],
    limit: Annotated[int, typer.Option(min=1, help="Prompts to show, the worst.")] = 200,
    images_max: Annotated[int | None, typer.Option(min=1, help="Pictures to open; all by default.")] = None,
    explain: Annotated[
        int, typer.Option(min=0, help="Prompts, the worst, for which the model also shows what it attends to.")
    ] = 0,
    config: Annotated[
        Path | None, typer.Option(help="With --explain: the run configuration (YAML) that refine had.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: every prompt with its picture, refined mask and scores, worst first."""
    from stable_sam.config import RunConfig
    from stable_sam.data.storage import absolute_uri
    from stable_sam.report.write import write_report

    run = None if config is None else RunConfig.from_yaml(config)
    shown = write_report(absolute_uri(table), out, limit=limit, images_max=images_max, explain=explain, config=run)
    typer.echo(f"{shown} prompts, worst first: {out}")
