"""Print the summary, the profile and the plan of a run in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_sam.wording import counted

if TYPE_CHECKING:
    from stable_sam.runs.plan import RunPlan
    from stable_sam.runs.summary import RunSummary


def print_summary(summary: RunSummary) -> None:
    """Print the prompts of a run by status and route with their median scores, and the speed."""
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
        console.print(
            f"{summary.table_uri} is up to date: nothing was refined. Its newest run is above.", soft_wrap=True
        )
        return
    speed = "" if summary.images_per_second is None else f" ({summary.images_per_second:.2f} images/s for each actor)"
    console.print(f"{counted(summary.images, 'image')} refined{speed}. Table: {summary.table_uri}", soft_wrap=True)


def print_profile(summary: RunSummary, trace_uri: str) -> None:
    """Print how long each stage of a run took, and where its trace was written."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if summary.up_to_date:
        console.print("Nothing was refined, so there are no stages to show.")
    elif summary.stages is None:
        console.print("A shard of this run was committed by a version that did not measure the stages.")
    else:
        header, *lines, total = summary.stages.cells()
        title = "Where the time went: seconds of all threads of all actors"
        table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, show_footer=True)
        for name, footer in zip(header, total, strict=True):
            table.add_column(name, footer=footer, justify="left" if name == "stage" else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    console.print(f"Trace to open in chrome://tracing or ui.perfetto.dev: {trace_uri}", soft_wrap=True)


def print_plan(plan: RunPlan) -> None:
    """Print what a dry run found, and how long the run would take."""
    from rich.console import Console

    from stable_sam.runs.estimate import duration, measured
    from stable_sam.runs.summary import describe
    from stable_sam.table.log import list_runs, open_table

    changes, config = plan.changes, plan.request.config
    lines = ["Dry run: nothing was written.", describe(changes)]
    prompts, images = counted(changes.planned, "prompt"), counted(plan.images, "image")
    lines.append(f"To refine: {prompts} on {images}, in {counted(plan.shards, 'shard')}.")
    if plan.tiles is not None:
        lines.append(plan.tiles.line())
    table = open_table(plan.request.output_uri)
    speed = None if table is None else measured(list_runs(table), config)
    if speed is None:
        lines.append("How long it takes is not known: this table has no measured run with this config.")
    else:
        seconds = speed.estimate(plan.images, changes.planned, config.prompt_cost)
        if config.ray.actors is None:  # as many as the cluster has room for, which is not known here
            time = f"{duration(seconds)} of one actor's time"
        else:
            actors = min(config.ray.actors, max(plan.shards, 1))
            time = f"{duration(seconds / actors)} with {counted(actors, 'actor')}"
        lines.append(
            f"It takes about {time}, without start-up. "
            f"Measured: {speed.images / speed.seconds:.2f} images/s and {speed.prompts / speed.seconds:.2f} prompts/s "
            f"for each actor ({counted(speed.runs, 'newest run')} with this config)."
        )
    Console().print("\n".join(lines), soft_wrap=True, highlight=False)
