"""`stable-sam refine`: the whole job, from weak annotations to the masks table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError

if TYPE_CHECKING:
    from stable_sam.summary import RunSummary

PREFECT_DEFAULTS = {
    # Without a configured server a temporary one starts, which takes 10 s on a free machine and longer on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The command prints its own progress, summary and errors; Prefect's log still goes to a configured server.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def refine(
    annotations: Annotated[str, typer.Option(help="COCO instances or detections (JSON), or a table of prompts.")],
    images: Annotated[str, typer.Option(help="Folder of the images, local or s3://.")],
    output: Annotated[str, typer.Option(help="Folder of the masks table, local or s3://.")],
    model: Annotated[str | None, typer.Option(help="nano, vit_b, vit_l, vit_h or tiny; overrides the file.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration (YAML), see configs/.")] = None,
    image_index: Annotated[str | None, typer.Option(help="COCO JSON whose `images` name the files of the ids.")] = None,
    logical_date: Annotated[str | None, typer.Option(help="The night this run stands for, YYYY-MM-DD.")] = None,
) -> None:
    """Refine weak boxes and points to masks, one table row for each prompt. Run again after a kill: it takes up."""
    from rich.console import Console

    from stable_sam.preflight import check_logical_date, check_run

    check_logical_date(logical_date)
    settings = read_settings(config, model)
    check_run(
        annotations_uri=annotations,
        images_uri=images,
        output_uri=output,
        config=settings,
        image_index_uri=image_index,
    )
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    Console(stderr=True).print("Starting Prefect and Ray ...")
    from flows.prefect_api import check_prefect_api

    check_prefect_api()
    from flows.refine import refine_dataset

    summary = refine_dataset(
        annotations_uri=annotations,
        images_uri=images,
        output_uri=output,
        config=settings.model_dump(mode="json"),
        image_index_uri=image_index,
        logical_date=logical_date,
    )
    print_summary(summary)


def read_settings(config_path: str | None, model: str | None) -> RunConfig:
    """The configuration file, or the defaults, with `model` put in; raises `ConfigError`."""
    settings = RunConfig() if config_path is None else RunConfig.from_yaml(config_path)
    if model is None or model == settings.refiner.model:
        return settings
    if settings.refiner.checkpoint_uri or settings.refiner.plugin_uri or settings.refiner.hq_uri:
        raise ConfigError(
            f"--model {model}: {config_path} names weights for {settings.refiner.model}; change the model there"
        )
    raw = settings.model_dump(mode="json")
    raw["refiner"]["model"] = model
    return RunConfig.from_dict(raw, source="--model")


def print_summary(summary: RunSummary) -> None:
    """Prompts by status and route with their median scores, and the speed."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    header, *lines, total = summary.cells()
    title = f"Run {summary.run_id}: prompts, and medians of their scores"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=0, show_footer=True)
    for position, (name, footer) in enumerate(zip(header, total, strict=True)):
        table.add_column(name.replace("_", " "), footer=footer, justify="left" if position < 2 else "right")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    if summary.up_to_date:
        console.print(f"Up to date: {summary.table_uri} already holds this run; nothing was done.")
        return
    speed = "" if summary.images_per_second is None else f" ({summary.images_per_second:.2f} images/s for each actor)"
    console.print(f"{summary.images} images refined{speed}. Table: {summary.table_uri}", soft_wrap=True)
