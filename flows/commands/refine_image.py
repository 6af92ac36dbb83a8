"""`stable-sam refine-image`: one picture, one weak prompt, one mask; without Prefect, Ray or a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Checkpoint, Config, Model, Plugin, run_config
from flows.commands.photo import Box, Photo, Points, PromptId, check_suffix, prompt_of, read_photo, write_picture

if TYPE_CHECKING:
    from stable_sam.records import RefinedMask


def refine_image(
    photo: Photo,
    out: Annotated[str, typer.Option(help="Where the mask goes: a PNG of 0 and 255.")],
    box: Box = None,
    point: Points = None,
    overlay: Annotated[str | None, typer.Option(help="Where the overlay goes; beside the mask by default.")] = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Config = None,
    prompt_id: PromptId = "refine-image",
) -> None:
    """Refine one weak box, points, or both, to a mask; print its scores and draw an overlay."""
    from rich.console import Console

    from stable_sam.errors import PromptError
    from stable_sam.explain.overlay import draw_overlay
    from stable_sam.refining.refiner import Refiner
    from stable_sam.rle import decode_mask

    overlay = overlay or _beside(out)
    for uri in (out, overlay):
        check_suffix(uri, (".png",), "masks must not be compressed with losses")
    run = run_config(config, model, checkpoint, plugin)
    data, pixels, prompt = read_photo(photo, prompt_of(photo, prompt_id, box, point), run.refiner.max_image_pixels)

    [refined] = Refiner(run.refiner, run.routing).refine_file(data, [prompt], name=photo)
    if refined.mask_size is None or refined.mask_counts is None:
        raise PromptError(f"{photo}: {refined.error}")
    mask = decode_mask(refined.mask_size, refined.mask_counts)
    drawn = draw_overlay(
        pixels, mask, box_xyxy=prompt.box_xyxy, points_xy=prompt.points_xy, point_labels=prompt.point_labels
    )
    write_picture(out, mask.astype("uint8") * 255)
    write_picture(overlay, drawn)
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
