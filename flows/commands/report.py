"""`stable-sam report`: write the HTML report of a masks table."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Checkpoint, Model, Plugin, Table, read_config


def report(
    table: Table,
    out: Annotated[str, typer.Option(help="HTML file to write (path or URI).")],
    limit: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of prompts in the gallery: a quarter drawn at random, up to a quarter that the newest run "
            "changed most, and the worst.",
        ),
    ] = 2000,
    images_max: Annotated[
        int | None, typer.Option(min=1, help="Most images that are opened for the gallery; all by default.")
    ] = None,
    explain: Annotated[
        int,
        typer.Option(
            min=0, help="Number of the worst prompts for which the page also shows what the decoder attends to."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the random quarter and its order.")] = 0,
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Annotated[str | None, typer.Option(help="Config file (YAML) that refine was given, for --explain.")] = None,
) -> None:
    """Write one self-contained HTML page with figures of the whole table and a gallery of its masks."""
    from stable_sam.report.write import write_report
    from stable_sam.storage.uris import absolute_uri, check_outside
    from stable_sam.wording import counted

    check_outside(absolute_uri(out), absolute_uri(table))
    shown = write_report(
        absolute_uri(table),
        out,
        limit=limit,
        images_max=images_max,
        explain=explain,
        seed=seed,
        config=read_config(config, model, checkpoint=checkpoint, plugin=plugin),
    )
    typer.echo(f"{counted(shown, 'prompt')} in the gallery of {out}")
