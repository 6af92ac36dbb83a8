"""`stable-sam evaluate`: the table of mIoU, boundary IoU and mSF for each method and kind of prompt."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from stable_sam.evaluation.benchmark import Evaluation


def evaluate(
    data: Annotated[list[Path], typer.Option(help="Folder with images/ and instances.json, or of such folders.")],
    out: Annotated[Path, typer.Option(help="Results as JSON.")],
    model: Annotated[str, typer.Option(help="nano, vit_b, vit_l or vit_h.")] = "nano",
    methods: Annotated[str, typer.Option(help="sam, stable-sam, or both.")] = "sam,stable-sam",
    prompts: Annotated[
        str, typer.Option(help="Kinds: gt-box, noisy-box (0.4), noisy-box-0.2, 1-point, 3-points, 10-points ...")
    ] = "gt-box,noisy-box,1-point,3-points",
    random_prompts: Annotated[int, typer.Option(min=1, help="Prompts for each object and random kind.")] = 4,
    min_area: Annotated[float, typer.Option(help="Smallest object, as a part of its picture.")] = 0.005,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each set, evenly spread; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn prompts.")] = 0,
    checkpoint: Annotated[
        str | None, typer.Option(help="URI of the base's weights; the bundled ones for nano.")
    ] = None,
    plugin: Annotated[str | None, typer.Option(help="URI of the plugin's weights; the bundled ones for nano.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of nano's input; the one its weights name by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
) -> None:
    """Measure SAM and Stable-SAM on people's masks: the same frozen base, pictures and prompts for both."""
    import json
    import os

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from stable_sam.config import RefinerConfig
    from stable_sam.errors import StorageError
    from stable_sam.evaluation.benchmark import evaluate as run

    config = RefinerConfig.from_dict(
        {"model": model, "checkpoint_uri": checkpoint, "plugin_uri": plugin, "device": device}
    )
    if threads is not None:
        torch.set_num_threads(threads)
    if not os.access(out.parent, os.W_OK) or out.is_dir():
        raise StorageError(f"{out}: expected a file in a folder that exists and can be written")

    progress = Progress(console=Console(stderr=True))
    bar = progress.add_task("pictures")

    def show(done: int, total: int) -> None:
        progress.start()
        progress.update(bar, completed=done, total=total)

    try:
        result = run(
            data,
            config,
            _split(methods),
            _split(prompts),
            random_prompts=random_prompts,
            min_area_fraction=min_area,
            limit=limit,
            seed=seed,
            size=size,
            on_image=show,
        )
    finally:
        progress.stop()
    out.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    console = Console()
    for table in _tables(result):
        console.print(table)
    console.print(
        f"{result.model_id} at {result.input_size} px, objects of at least {result.min_area_fraction:.2%} of their "
        f"picture, {result.random_prompts} random prompts each. own IoU: the model's estimate; alpha 1: weight of the "
        f"plugin. All numbers: {out}"
    )


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _tables(result: Evaluation) -> Iterator[Table]:
    """One table for each set: a set's name is wider than any column of its scores."""
    from rich.table import Table

    for name, scores in groupby(result.scores, key=lambda score: score.set):
        lines = list(scores)
        table = Table(title=f"{name}: {lines[0].objects} objects", title_justify="left", title_style="bold")
        for column in ("prompts", "method"):
            table.add_column(column, no_wrap=True, min_width=10)
        for column in ("mIoU", "mBIoU", "mSF", "own IoU", "alpha 1"):
            table.add_column(column, justify="right", no_wrap=True)
        for score in lines:
            stability = "-" if score.msf is None else f"{score.msf:.3f}"
            numbers = [f"{value:.3f}" for value in (score.predicted_iou, score.dsp_weight)]
            table.add_row(score.prompts, score.method, f"{score.miou:.3f}", f"{score.mbiou:.3f}", stability, *numbers)
        yield table
