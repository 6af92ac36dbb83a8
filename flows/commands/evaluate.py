"""`stable-sam evaluate`: the table of mIoU, boundary IoU and mSF for each method and kind of prompt."""

from __future__ import annotations

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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
    except OSError as error:
        raise StorageError(f"{out}: cannot write results: {error.strerror}") from None

    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("pictures", total=None)
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
            on_image=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    out.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    Console().print(_table(result))


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _table(result: Evaluation) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{result.model_id} at {result.input_size} px, {result.random_prompts} random prompts",
        caption=f"objects of at least {result.min_area_fraction:.2%} of their picture",
    )
    for name in ("prompts", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("objects", "mIoU", "mBIoU", "mSF", "own IoU", "alpha 1"):
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for score in result.scores:
        if score.set != before:
            table.add_section()
            table.add_row(Text(score.set, style="bold", overflow="fold"))
        before = score.set
        table.add_row(
            score.prompts,
            score.method,
            str(score.objects),
            f"{score.miou:.3f}",
            f"{score.mbiou:.3f}",
            "-" if score.msf is None else f"{score.msf:.3f}",
            f"{score.predicted_iou:.3f}",
            f"{score.dsp_weight:.3f}",
        )
    return table
