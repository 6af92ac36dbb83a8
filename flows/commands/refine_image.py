"""`stable-sam refine-image`: refine one weak prompt on one image, without Prefect, Ray or a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.one_image import Box, ImageFile, Points, PromptId, check_suffix, prompt_of, read_image, write_image
from flows.commands.options import Checkpoint, Config, Model, Plugin, read_config

if TYPE_CHECKING:
    from stable_sam.records import RefinedMask


def refine_image(
    image: ImageFile,
    out: Annotated[
        str, typer.Option(help="PNG file to write the mask to (path or URI), with 255 on the object and 0 elsewhere.")
    ],
    box: Box = None,
    point: Points = None,
    overlay: Annotated[
        str | None,
        typer.Option(
            help="PNG file to write the image with the mask drawn on it to (path or URI); beside --out by default."
        ),
    ] = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Config = None,
    prompt_id: PromptId = "refine-image",
) -> None:
    """Refine one weak box, points, or both, to a mask, print its scores and draw it on the image."""
    from rich.console import Console

    from stable_sam.errors import PromptError
    from stable_sam.explain.overlay import draw_overlay
    from stable_sam.refining.refiner import Refiner
    from stable_sam.rle import decode_mask

    overlay = overlay or _beside(out)
    for uri in (out, overlay):
        check_suffix(uri, (".png",), "a mask must be compressed without loss")
    run = read_config(config, model, checkpoint=checkpoint, plugin=plugin)
    data, pixels, prompt = read_image(image, prompt_of(image, prompt_id, box, point), run.refiner.max_image_pixels)

    [refined] = Refiner(run.refiner, run.routing).refine_file(data, [prompt], name=image)
    if refined.mask_size is None or refined.mask_counts is None:
        raise PromptError(f"{image}: {refined.error}")
    mask = decode_mask(refined.mask_size, refined.mask_counts)
    drawn = draw_overlay(
        pixels, mask, box_xyxy=prompt.box_xyxy, points_xy=prompt.points_xy, point_labels=prompt.point_labels
    )
    write_image(out, mask.astype("uint8") * 255)
    write_image(overlay, drawn)
    console = Console()
    console.print(_score_table(refined))
    console.print(f"mask:    {out}\noverlay: {overlay}", highlight=False, soft_wrap=True)


def _beside(out: str) -> str:
    return out.removesuffix(".png") + "_overlay.png"


def _score_table(refined: RefinedMask) -> Any:
    from rich.table import Table

    from stable_sam.scores import FROM_MODEL

    table = Table("score", "value")
    for name in (*FROM_MODEL, "area", "bbox_xywh", "second_pass", "view", "tile_xywh"):
        value = getattr(refined, name)
        if value is not None:
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    table.add_row("route", str(refined.route))
    table.add_row("route_reason", str(refined.route_reason))
    return table
