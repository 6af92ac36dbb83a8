"""`stable-sam report`: a masks table as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    table: Annotated[str, typer.Option(help="URI of the table: the --output of refine.")],
    out: Annotated[str, typer.Option(help="The page to write (path or URI).")],
    limit: Annotated[
        int, typer.Option(min=1, help="Prompts in the gallery: the worst, the most changed, a random quarter.")
    ] = 2000,
    images_max: Annotated[int | None, typer.Option(min=1, help="Pictures to open; all by default.")] = None,
    explain: Annotated[
        int, typer.Option(min=0, help="Prompts, the worst, for which the model also shows what it attends to.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws the random sample and its order.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="With --explain: the run configuration (YAML) that refine had.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: figures of the whole table, and a gallery of its masks."""
    from stable_sam.config import RunConfig
    from stable_sam.report.write import write_report
    from stable_sam.storage.files import absolute_uri

    run = None if config is None else RunConfig.from_yaml(config)
    shown = write_report(
        absolute_uri(table), out, limit=limit, images_max=images_max, explain=explain, seed=seed, config=run
    )
    typer.echo(f"{shown} prompts in the gallery: {out}")
