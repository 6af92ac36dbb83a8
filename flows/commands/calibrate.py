"""`stable-sam calibrate`: learn from masks with known true masks which masks can be accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Checkpoint, Model, Plugin, read_config
from stable_sam.scores import GOOD_IOU

if TYPE_CHECKING:
    from rich.table import Table

    from stable_sam.calibration.calibrate import Held
    from stable_sam.config import RefinerConfig
    from stable_sam.refining.refiner import Refiner


def calibrate(
    out: Annotated[
        str,
        typer.Option(
            help="JSON file to write the calibration to (path or URI). A config names it as routing.calibration_uri."
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with images/ and instances.json (COCO true masks), or a folder of such folders."),
    ] = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Folder as for --data. The calibration is only judged on it, each set by itself."),
    ] = None,
    records: Annotated[
        list[str] | None,
        typer.Option(
            help="Labelled masks that --save-records wrote (path or URI), or `bundled` for those of nano's bundled "
            "calibration."
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Masks table, the --output of refine (path or URI). Its reviewed masks are added to the labelled ones."
        ),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            help="Fraction given to `export --sample`, when people reviewed all masks of that sample of --table. The "
            "promises are then checked on the sample."
        ),
    ] = None,
    save_records: Annotated[
        str | None, typer.Option(help="Parquet file to write the labelled masks to (path or URI).")
    ] = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Annotated[str | None, typer.Option(help="Config (YAML) of the runs that the calibration is for.")] = None,
    prompts: Annotated[
        str, typer.Option(help="Kinds of weak prompts that are drawn for each object, as for `stable-sam evaluate`.")
    ] = "detector-box,noisy-box-0.2,noisy-box",
    target_iou: Annotated[float, typer.Option(help="Smallest IoU with the true mask of a good mask.")] = GOOD_IOU,
    precision: Annotated[float, typer.Option(help="Promised share of good masks among the accepted masks.")] = 0.95,
    reject_precision: Annotated[
        float, typer.Option(help="Promised share of bad masks among the rejected masks.")
    ] = 0.95,
    confidence: Annotated[float, typer.Option(help="Confidence of both promises.")] = 0.95,
    min_area: Annotated[float, typer.Option(help="Smallest object that is used, as a fraction of its image.")] = 0.005,
    max_objects: Annotated[
        int | None, typer.Option(min=1, help="Number of objects drawn at random from all sets; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn prompts and objects and of the split.")] = 0,
    markdown: Annotated[str | None, typer.Option(help="Markdown file to write the tables to (path or URI).")] = None,
    chart: Annotated[
        str | None,
        typer.Option(help="PNG file to draw the risk-coverage curves and reliability diagrams to (path or URI)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of CPU threads; all cores by default.")] = None,
) -> None:
    """Learn the probability that a mask is good from its scores, and choose thresholds that keep a promise.

    The calibration also predicts by how much a mask beats its filled weak box. Masks that are not expected to beat it
    are not accepted.

    The labelled masks come from weak prompts that are drawn from true masks and refined as in a run (--data), from
    saved files (--records), or from people's reviews of a table (--table). Two fifths of the images are kept for
    choosing the thresholds; with --sample, the reviewed sample is used instead.
    """
    from rich.console import Console

    from stable_sam.calibration.calibrate import CalibrationConfig, held_by_set
    from stable_sam.calibration.calibrate import calibrate as fit
    from stable_sam.calibration.drawing import chart as draw_chart
    from stable_sam.calibration.drawing import gain_line, promise_line
    from stable_sam.calibration.drawing import markdown as tables
    from stable_sam.calibration.label_sources import LabelSources, gather_labels
    from stable_sam.calibration.labels import labelled, write_records
    from stable_sam.storage.files import write_bytes

    sources = LabelSources(
        data=tuple(data or ()),
        test=tuple(test or ()),
        records=tuple(records or ()),
        tables=tuple(table or ()),
        sample=sample,
        prompts=tuple(prompts.split(",")),
        min_area_fraction=min_area,
        max_objects=max_objects,
        seed=seed,
    )
    fit_config = CalibrationConfig.from_dict(
        {
            "target_iou": target_iou,
            "precision": precision,
            "reject_precision": reject_precision,
            "confidence": confidence,
            "seed": seed,
        },
        source="options",
    )
    refiner = read_config(config, model, checkpoint=checkpoint, plugin=plugin).refiner
    with _image_bar(shown=bool(data or test)) as on_image:
        labels = gather_labels(sources, refiner, lambda own: _load(own, threads), on_image)
    for line in (line for of_table in labels.reviewed for line in of_table.lines()):
        typer.echo(line)
    if save_records is not None:
        write_records(labels.records, save_records, labels.refiner, labels.model)
    calibration, apart = fit(labelled(labels.records), labels.refiner, labels.model, fit_config)
    sets = [apart, *(held_by_set(calibration, labelled(labels.unseen)) if labels.unseen is not None else ())]
    write_bytes(out, calibration.model_dump_json(indent=1).encode() + b"\n")
    if markdown is not None:
        write_bytes(markdown, tables(calibration, sets).encode())
    if chart is not None:
        write_bytes(chart, draw_chart(calibration, sets))
    console = Console()
    for one in sets:
        console.print(_table(one))
        if one.sizes:
            console.print(_sizes_table(one))
    for line in (*map(promise_line, (calibration.accept, calibration.reject)), gain_line(calibration.gain_over_box)):
        console.print(line, soft_wrap=True)


def _load(config: RefinerConfig, threads: int | None) -> Refiner:
    import torch

    from stable_sam.config import RoutingConfig
    from stable_sam.refining.refiner import Refiner

    if threads is not None:
        torch.set_num_threads(threads)
    return Refiner(config, RoutingConfig(calibration_uri=None))


@contextmanager
def _image_bar(shown: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not shown) as progress:
        bar = progress.add_task("images")
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _table(one: Held) -> Table:
    from rich.table import Table

    from stable_sam.calibration.judge import REVIEW_SHARE
    from stable_sam.wording import counted

    first = one.judgements[0]
    table = Table(title=f"{one.name}: {counted(first.masks, 'mask')}, {first.bad:.0%} bad", title_justify="left")
    for column in ("score", "Spearman", "AURC", f"caught by {REVIEW_SHARE:.0%} review"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for row in one.judgements:
        table.add_row(row.score, f"{row.spearman:.2f}", f"{row.aurc:.3f}", f"{row.caught:.0%}")
    table.add_row("best possible", "1.00", f"{first.aurc_best:.3f}", f"{first.caught_best:.0%}")
    return table


def _sizes_table(one: Held) -> Table:
    from rich.table import Table

    from stable_sam.calibration.drawing import SIZE_COLUMNS, size_rows

    table = Table(title=f"{one.name}: accepted masks beside their filled boxes", title_justify="left")
    for column in SIZE_COLUMNS:
        table.add_column(column, justify="left" if column == SIZE_COLUMNS[0] else "right")
    for row in size_rows(one.sizes):
        table.add_row(*row)
    return table
