"""`stable-sam refine`: the whole job, from weak annotations to the masks table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stable_sam.errors import ConfigError
from stable_sam.records import AnnotationFormat

if TYPE_CHECKING:
    from stable_sam.config import RunConfig
    from stable_sam.data.planning import NightPlan
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
    annotations: Annotated[
        str, typer.Option(help="File, folder, pattern, or several with commas; formats: docs/annotations.md.")
    ],
    images: Annotated[str, typer.Option(help="Folder of the images, local or s3://.")],
    output: Annotated[str, typer.Option(help="Folder of the masks table, local or s3://.")],
    model: Annotated[str | None, typer.Option(help="nano, vit_b, vit_l, vit_h or tiny; overrides the file.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration (YAML), see configs/.")] = None,
    file_format: Annotated[
        AnnotationFormat | None, typer.Option("--format", help="Of the annotations; overrides the file.")
    ] = None,
    image_index: Annotated[str | None, typer.Option(help="COCO JSON whose `images` name the files of the ids.")] = None,
    logical_date: Annotated[str | None, typer.Option(help="The night this run stands for, YYYY-MM-DD.")] = None,
    refresh: Annotated[
        list[str] | None,
        typer.Option(help="Refine again what did not change: failed; model (by other weights or settings); or all."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Look only at files modified since then (YYYY-MM-DD, UTC); nothing is withdrawn."),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="COCO instances with true masks of some images: the night is scored.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Print where the time went, and write a Chrome trace to this JSON file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Refine weak boxes and points to masks: what is new or changed since the last run, one table row for each prompt.

    Run again after a kill: it takes up.
    """
    from stable_sam.preflight import check_logical_date, check_run, refresh_reasons, since_moment

    check_logical_date(logical_date)
    refresh_reasons(refresh), since_moment(since, "UTC")
    if profile is not None and dry_run:
        raise ConfigError("--profile: expected a run to profile, got --dry-run, which does none")
    settings = read_settings(config, model, file_format)
    if truth is not None:
        settings = settings.model_copy(update={"truth_uri": truth})
    sources: dict[str, Any] = {
        "annotations_uri": annotations, "images_uri": images, "output_uri": output, "image_index_uri": image_index
    }  # fmt: skip
    check_run(**sources, config=settings, writes=not dry_run)
    if dry_run:
        from stable_sam.data.planning import check_withdrawn

        plan = plan_only(sources, settings, refresh, since)
        print_plan(output, settings, plan)
        check_withdrawn(plan.changes, settings.max_withdrawn_fraction, annotations)
        return
    start_prefect()
    from flows.refine import refine_dataset

    summary = refine_dataset(
        **sources,
        config=settings.model_dump(mode="json"),
        logical_date=logical_date,
        refresh=refresh,
        since=since,
        profile_uri=profile,
    )
    print_summary(summary)
    if profile is not None:
        print_profile(summary, profile)


def start_prefect() -> None:
    """Set Prefect up for a command that prints its own progress; raises `StableSamError` when its server is away."""
    from rich.console import Console

    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    Console(stderr=True).print("Starting Prefect and Ray ...")
    from flows.prefect_api import check_prefect_api

    check_prefect_api()


def plan_only(
    sources: dict[str, Any], settings: RunConfig, refresh: list[str] | None = None, since: str | None = None
) -> NightPlan:
    """What a run would do, without Prefect and without writing anything. sources: the URIs, named as in the flow."""
    from stable_sam.data.annotation_files import absolute_annotations
    from stable_sam.data.annotations import read_prompt_batches
    from stable_sam.data.planning import plan_night
    from stable_sam.data.storage import absolute_uri
    from stable_sam.identity import model_identity
    from stable_sam.preflight import refresh_reasons, since_moment

    # As the flow gives them: a fingerprint holds the image's URI.
    annotations, images = absolute_annotations(sources["annotations_uri"]), absolute_uri(sources["images_uri"])
    index = sources["image_index_uri"]
    return plan_night(
        lambda: read_prompt_batches(annotations, images_uri=images, image_index_uri=index, source=settings.source),
        annotations_uri=annotations,
        images_uri=images,
        output_uri=sources["output_uri"],
        config=settings,
        model=model_identity(settings.refiner),
        image_index_uri=index,
        refresh=refresh_reasons(refresh),
        since=since_moment(since, "UTC"),
        dry_run=True,
    )


def read_settings(config_path: str | None, model: str | None, file_format: AnnotationFormat | None = None) -> RunConfig:
    """The configuration file, or the defaults, with `model` and `file_format` put in; raises `ConfigError`."""
    from stable_sam.config import RunConfig

    settings = RunConfig() if config_path is None else RunConfig.from_yaml(config_path)
    if file_format is not None:
        source = settings.source.model_copy(update={"format": file_format})
        settings = settings.model_copy(update={"source": source})
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
    if summary.changes is not None:
        console.print(summary.changes_line(), soft_wrap=True)
    if summary.truth is not None:
        console.print(summary.truth.line(), soft_wrap=True)
    if summary.up_to_date:
        console.print(f"Up to date: nothing was done; the newest run of {summary.table_uri} is above.", soft_wrap=True)
        return
    speed = "" if summary.images_per_second is None else f" ({summary.images_per_second:.2f} images/s for each actor)"
    console.print(f"{summary.images} images refined{speed}. Table: {summary.table_uri}", soft_wrap=True)


def print_profile(summary: RunSummary, trace_uri: str) -> None:
    """Where the time of a run went, by stage."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if summary.up_to_date:
        console.print("Nothing was refined, so that there are no stages to show.")
    elif summary.stages is None:
        console.print("A shard of this run was committed by a version that did not measure its stages.")
    else:
        header, *lines, total = summary.stages.cells()
        title = "Where the time went: seconds of threads, of all actors"
        table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, show_footer=True)
        for name, footer in zip(header, total, strict=True):
            table.add_column(name, footer=footer, justify="left" if name == "stage" else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    console.print(f"Trace, for chrome://tracing or ui.perfetto.dev: {trace_uri}", soft_wrap=True)


def print_plan(output_uri: str, settings: RunConfig, plan: NightPlan) -> None:
    """What a dry run found, and how long it would take."""
    from rich.console import Console

    from stable_sam.data.runs import list_runs, open_table
    from stable_sam.estimate import duration, measured
    from stable_sam.summary import describe

    changes = plan.changes
    lines = ["Dry run: nothing was written.", describe(changes)]
    if changes.planned + changes.withdrawn == 0:
        lines.append("Nothing to do.")
    else:
        lines.append(f"To refine: {changes.planned} prompts on {plan.images} images, in {plan.shards} shards.")
    if plan.tiles is not None:
        lines.append(plan.tiles.line())
    if changes.planned:
        table = open_table(output_uri)
        speed = None if table is None else measured(list_runs(table), settings)
        if speed is None:
            lines.append("How long: not known; no run with these settings was measured in this table.")
        else:
            seconds = speed.estimate(plan.images, changes.planned, settings.prompt_cost)
            actors = min(settings.ray.actors or 1, max(plan.shards, 1))
            lines.append(
                f"How long: about {duration(seconds / actors)} with {actors} actor{'s' if actors > 1 else ''}, without "
                f"start-up. Measured: {speed.images / speed.seconds:.2f} images/s and "
                f"{speed.prompts / speed.seconds:.2f} prompts/s for each actor (newest {speed.runs} of the runs with "
                "these settings)."
            )
    Console().print("\n".join(lines), soft_wrap=True, highlight=False)
