"""`stable-sam calibrate`: learn from masks with known truth which masks may be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from stable_sam.calibration.calibrate import Held
    from stable_sam.config import RefinerConfig
    from stable_sam.refining.refiner import Refiner


def calibrate(
    out: Annotated[str, typer.Option(help="Calibration (JSON); a configuration names it: routing.calibration_uri.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder with images/ and instances.json, or of such folders.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="The same, never fitted on: judged only, each set by itself.")
    ] = None,
    records: Annotated[
        list[str] | None,
        typer.Option(help="Labelled masks that --save-records wrote, or `bundled`: those behind nano's calibration."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Masks table whose reviewed masks count too (--output of refine).")
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(help="Of --table: the part that `export --sample` drew, all reviewed. The promises are of it."),
    ] = None,
    save_records: Annotated[str | None, typer.Option(help="Write the labelled masks (Parquet).")] = None,
    config: Annotated[str | None, typer.Option(help="The runs' configuration (YAML): model, K, scale.")] = None,
    prompts: Annotated[
        str, typer.Option(help="Kinds of weak prompts drawn from each object, as in `evaluate`.")
    ] = "detector-box,noisy-box-0.2,noisy-box",
    target_iou: Annotated[float, typer.Option(help="IoU from which a mask is good.")] = 0.75,
    precision: Annotated[float, typer.Option(help="Promised share of good masks among the accepted.")] = 0.95,
    reject_precision: Annotated[float, typer.Option(help="Promised share of bad masks among the rejected.")] = 0.95,
    confidence: Annotated[float, typer.Option(help="Confidence of both promises.")] = 0.95,
    min_area: Annotated[float, typer.Option(help="Smallest object, as a part of its picture.")] = 0.005,
    max_objects: Annotated[int | None, typer.Option(min=1, help="Objects of all sets, at random; all if none.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, objects and the split.")] = 0,
    markdown: Annotated[str | None, typer.Option(help="The tables as Markdown.")] = None,
    chart: Annotated[str | None, typer.Option(help="Risk-coverage curves and reliability diagrams (PNG).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
) -> None:
    """Fit the probability that a mask is good to its scores, and choose thresholds that keep a promise.

    With it goes the expected gain over the filled weak box: masks that are not expected to gain are not accepted.

    Weak prompts are drawn from people's masks and refined as a run would (--data), or people reviewed a table
    (--table). Two fifths of the pictures are kept apart from the fit, for the thresholds; --sample takes their place.
    """
    import pyarrow as pa
    from rich.console import Console

    from flows.commands.options import read_settings
    from stable_sam.calibration.calibrate import CalibrationSettings, held
    from stable_sam.calibration.calibrate import calibrate as fit
    from stable_sam.calibration.drawing import chart as draw_chart
    from stable_sam.calibration.drawing import gain_line, promise_line
    from stable_sam.calibration.drawing import markdown as tables
    from stable_sam.calibration.labels import labelled, read_records, without_tiles, write_records
    from stable_sam.calibration.reviewed import reviewed_labels
    from stable_sam.errors import ConfigError
    from stable_sam.identity import model_identity
    from stable_sam.storage.files import absolute_uri, write_bytes

    if not data and not records and not table:
        raise ConfigError("calibrate: expected --data, --records or --table, got none of them")
    if sample is not None and not table:
        raise ConfigError("--sample: expected --table, the table that it is a part of")
    settings = CalibrationSettings.from_dict(
        {
            "target_iou": target_iou,
            "precision": precision,
            "reject_precision": reject_precision,
            "confidence": confidence,
            "seed": seed,
        },
        source="options",
    )
    drawing = Drawing(prompts=prompts.split(","), min_area_fraction=min_area, max_objects=max_objects, seed=seed)
    refiner = read_settings(config, None).refiner
    for uri in records or ():  # masks of whole images calibrate masks of whole images
        refiner = without_tiles(uri, refiner)
    model = model_identity(refiner)
    reviewed = [reviewed_labels(absolute_uri(uri), refiner, model, sample) for uri in table or ()]
    for line in (line for labels in reviewed for line in labels.lines()):
        typer.echo(line)
    parts = [read_records(uri, refiner, model) for uri in records or ()] + [labels.records for labels in reviewed]
    loaded = _load(refiner, threads) if data or test else None
    if data and loaded:
        parts.append(_draw(data, loaded, drawing))
    masks = pa.concat_tables(parts)
    if save_records is not None:
        write_records(masks, save_records, refiner, model)
    calibration, apart = fit(labelled(masks), refiner, model, settings)
    sets = [apart]
    if test and loaded:
        unseen = labelled(_draw(test, loaded, drawing))
        sets += [held(name, calibration, unseen.take(unseen.sets == name)) for name in sorted(set(unseen.sets))]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Which prompts are drawn from people's masks."""

    prompts: list[str]
    min_area_fraction: float
    max_objects: int | None
    seed: int


def _load(config: RefinerConfig, threads: int | None) -> Refiner:
    import torch

    from stable_sam.config import RoutingConfig
    from stable_sam.refining.refiner import Refiner

    if threads is not None:
        torch.set_num_threads(threads)
    return Refiner(config, RoutingConfig(calibration_uri=None))


def _draw(folders: list[Path], refiner: Refiner, drawing: Drawing) -> pa.Table:
    from rich.console import Console
    from rich.progress import Progress

    from stable_sam.calibration.labels import draw_labels

    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("pictures")
        return draw_labels(
            folders,
            refiner,
            drawing.prompts,
            min_area_fraction=drawing.min_area_fraction,
            max_objects=drawing.max_objects,
            seed=drawing.seed,
            on_image=lambda done, total: progress.update(bar, completed=done, total=total),
        )


def _table(one: Held) -> Table:
    from rich.table import Table

    from stable_sam.calibration.judge import REVIEWED

    first = one.judgements[0]
    table = Table(title=f"{one.name}: {first.masks} masks, {first.bad:.0%} bad", title_justify="left")
    for column in ("score", "Spearman", "AURC", f"caught by {REVIEWED:.0%} review"):
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
