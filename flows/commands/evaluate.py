"""`stable-sam evaluate`: measure mIoU, boundary IoU and mSF for each method and kind of prompt."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Checkpoint, ModelWithoutConfig, Plugin

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from stable_sam.evaluation.evaluate import Evaluation
    from stable_sam.evaluation.evaluation_config import EvaluationConfig


def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(help="Folder with images/ and instances.json (COCO true masks), or a folder of such folders."),
    ],
    out: Annotated[str, typer.Option(help="JSON file to write the results to (path or URI).")],
    markdown: Annotated[str | None, typer.Option(help="Markdown file to write the tables to (path or URI).")] = None,
    chart: Annotated[str | None, typer.Option(help="PNG file to draw a bar chart of mIoU to (path or URI).")] = None,
    alpha_plot: Annotated[
        str | None,
        typer.Option(help="PNG file to plot alpha_1 against the quality of prompts to (path or URI)."),
    ] = None,
    records: Annotated[
        str | None, typer.Option(help="Parquet file to write one row for each mask to (path or URI), to query in SQL.")
    ] = None,
    model: ModelWithoutConfig = "nano",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods to compare, separated by commas: sam, hq-sam, stable-sam, and box, which fills the prompt's "
            "box. By default sam,stable-sam, and box as well for the prompts detector-boxes."
        ),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(
            help="Kinds of weak prompts, separated by commas: gt-box, noisy-box (noise 0.4), noisy-box-0.2, "
            "shifted-box, truncated-box, loose-box, detector-box, two-objects-box, worst-box, detector-boxes, "
            "1-point, 3-points, 10-points ..."
        ),
    ] = "gt-box,noisy-box,1-point,3-points",
    detections: Annotated[
        str | None,
        typer.Option(help="COCO detection results (path or URI) with the boxes for the prompts detector-boxes."),
    ] = None,
    random_prompts: Annotated[
        int, typer.Option(min=1, help="Number of prompts drawn for each object and random kind (B of the paper).")
    ] = 20,
    min_area: Annotated[
        float, typer.Option(help="Smallest object that is evaluated, as a fraction of its image; all by default.")
    ] = 0.0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of images of each set, evenly spread; all by default.")
    ] = None,
    max_objects: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of objects drawn at random from all sets, in proportion to their sizes; all by default."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the drawn prompts, the drawn objects and the confidence intervals.")
    ] = 0,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    hq: Annotated[
        str | None,
        typer.Option(
            help="Weights of HQ-SAM (path or URI). By default the bundled ones of nano, or what `stable-sam models get "
            "--hq` downloaded."
        ),
    ] = None,
    tiles: Annotated[
        str,
        typer.Option(
            help="auto: small objects are segmented in tiles of the image, as by refine. off: all are segmented in the "
            "whole image."
        ),
    ] = "auto",
    size: Annotated[
        int | None, typer.Option(help="Side of nano's square input in pixels; that of its weights by default.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device of the model: auto, cpu, cuda, or a GPU such as cuda:1.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Number of CPU threads; all cores by default.")] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Run as a Prefect flow on this number of Ray actors, each with one thread."),
    ] = None,
) -> None:
    """Compare SAM, HQ-SAM and Stable-SAM with true masks, on the same frozen base, the same images and prompts."""
    from rich.console import Console

    from stable_sam.errors import ConfigError
    from stable_sam.evaluation.evaluation_config import EvaluationConfig
    from stable_sam.evaluation.outputs import EvaluationOutputs
    from stable_sam.wording import counted

    settings = EvaluationConfig.from_dict(
        {
            "refiner": {
                "model": model,
                "checkpoint_uri": checkpoint,
                "plugin_uri": plugin,
                "hq_uri": hq,
                "device": device,
                "tiles": tiles,
            },
            "prompts": _split(prompts),
            **({} if methods is None else {"methods": _split(methods)}),
            "detections_uri": detections,
            "random_prompts": random_prompts,
            "min_area_fraction": min_area,
            "limit": limit,
            "max_objects": max_objects,
            "seed": seed,
            "size": size,
        },
        source="options",
    )
    outputs = EvaluationOutputs(
        json_uri=out, markdown_uri=markdown, chart_uri=chart, alpha_plot_uri=alpha_plot, records_uri=records
    )
    outputs.check()
    if actors is not None and threads is not None:
        raise ConfigError(f"--threads: expected none with --actors, because each actor has one thread, got {threads}")
    if actors is None:
        evaluation, table = _evaluate_here(data, settings, threads)
        outputs.write(evaluation, table)
    else:
        evaluation = _evaluate_over_ray(data, settings, outputs.model_dump(), actors)
    console = Console()
    for shown in _tables(evaluation):
        console.print(shown)
    console.print(
        f"{evaluation.model.model} at {evaluation.model.input_size} px, objects {settings.object_sizes}, "
        f"{counted(random_prompts, 'random prompt')} each. own IoU: the model's estimate; "
        "alpha 1: weight of the plugin; to SAM: difference in mIoU with its 95 % interval. "
        f"All numbers, also by size, for parts of objects and for the bound of routing: {out}"
    )
    for name, of in evaluation.sets.items():
        if (counts := of.detections) is not None:
            console.print(
                f"{name}: {counted(counts.matched, 'detection')} matched to true objects, {counts.unmatched} not, "
                f"{counts.other_pictures} on images that are not evaluated"
            )


def _evaluate_here(data: list[Path], settings: EvaluationConfig, threads: int | None) -> tuple[Evaluation, pa.Table]:
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from stable_sam.evaluation.evaluate import evaluate as run

    if threads is not None:
        torch.set_num_threads(threads)
    progress = Progress(console=Console(stderr=True))
    bar = progress.add_task("images")

    def show(done: int, total: int) -> None:
        progress.start()
        progress.update(bar, completed=done, total=total)

    try:
        return run(data, settings, on_image=show)
    finally:
        progress.stop()


def _evaluate_over_ray(
    data: list[Path], settings: EvaluationConfig, outputs: dict[str, str | None], actors: int
) -> Evaluation:
    from flows.prefect_setup import start_prefect

    start_prefect()
    from flows.evaluate import evaluate_dataset

    return evaluate_dataset(
        data=[str(folder) for folder in data],
        outputs=outputs,
        settings=settings.model_dump(mode="json"),
        ray={"actors": actors},
    )


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _tables(evaluation: Evaluation) -> Iterator[Table]:
    """One table for each set, because a set's name is wider than any column of its scores."""
    from rich.table import Table

    from stable_sam.evaluation.averages import WHOLE_SLICE
    from stable_sam.wording import counted

    whole = [score for score in evaluation.scores if score.slice == WHOLE_SLICE]
    for name, scores in groupby(whole, key=lambda score: score.set):
        lines = list(scores)
        objects = max(line.objects for line in lines)
        table = Table(title=f"{name}: {counted(objects, 'object')}", title_justify="left", title_style="bold")
        for column in ("prompts", "method"):
            table.add_column(column, no_wrap=True, min_width=10)
        for column in ("mIoU", "to SAM", "mBIoU", "mSF", "own IoU", "alpha 1"):
            table.add_column(column, justify="right", no_wrap=True)
        for line in lines:
            numbers = [line.mbiou.value, None if line.msf is None else line.msf.value, line.predicted_iou]
            change = line.to_sam.get("miou")
            table.add_row(
                line.prompts,
                line.method,
                f"{line.miou.value:.3f}",
                "" if change is None else f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
                *("-" if number is None else f"{number:.3f}" for number in numbers),
                f"{line.dsp_weight:.3f}",
            )
        yield table
