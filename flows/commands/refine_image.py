"""`stable-sam refine-image`: one picture, one weak prompt, one mask; without Prefect, Ray or a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from stable_sam.config import RunConfig
    from stable_sam.records import Prompt, RefinedMask


class COMMAND_CLASS(TyperCommand):
    """Lets `--point` be given often, with three values each, which typer's own options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Hand every `--point X Y LABEL` to typer as one value."""
        joined: list[str] = []
        rest = list(args)
        while rest:
            joined.append(rest.pop(0))
            if joined[-1] == "--point":
                values: list[str] = []
                # Numbers alone: an option or the photo after an incomplete point must not become a part of it.
                while rest and _are_numbers(rest[0]) and len(_split(" ".join(values))) < 3:
                    values.append(rest.pop(0))
                joined.append(" ".join(values))
        return super().parse_args(ctx, joined)


def refine_image(
    photo: Annotated[str, typer.Argument(help="Image file (path or URI).")],
    out: Annotated[str, typer.Option(help="Where the mask goes: a PNG of 0 and 255.")],
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="Weak box in pixels of the upright picture.", metavar="X0 Y0 X1 Y1"),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Point in pixels; label 1 = object, 0 = background. May be repeated.", metavar="X Y LABEL"),
    ] = None,
    overlay: Annotated[str | None, typer.Option(help="Where the overlay goes; beside the mask by default.")] = None,
    model: Annotated[str | None, typer.Option(help="nano (the default), vit_b, vit_l or vit_h.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="URI of the base's weights; nano brings its own.")] = None,
    plugin: Annotated[str | None, typer.Option(help="URI of the plugin's weights; nano brings its own.")] = None,
    config: Annotated[Path | None, typer.Option(help="Run configuration (YAML), as for `refine`.")] = None,
    prompt_id: Annotated[
        str, typer.Option(help="Seeds the jittered prompts: a pipeline row's id gives that row's numbers.")
    ] = "refine-image",
) -> None:
    """Refine one weak box, points, or both, to a mask; print its scores and draw an overlay."""
    from rich.console import Console

    from stable_sam.data.images import decode_image
    from stable_sam.data.storage import read_bytes, write_bytes
    from stable_sam.errors import PromptError
    from stable_sam.overlay import draw_overlay
    from stable_sam.prompt_check import check_prompt
    from stable_sam.refiner import Refiner
    from stable_sam.rle import decode_mask

    overlay = overlay or _beside(out)
    _check_png(out)
    _check_png(overlay)
    run = _run_config(config, {"model": model, "checkpoint_uri": checkpoint, "plugin_uri": plugin})
    prompt = _prompt(photo, prompt_id, box, point or [])
    pixels = decode_image(read_bytes(photo), name=photo, max_pixels=run.refiner.max_image_pixels)
    try:
        prompt = check_prompt(prompt, (pixels.shape[0], pixels.shape[1]))
    except PromptError as error:
        raise PromptError(f"{photo}: {error}") from None

    [refined] = Refiner(run.refiner, run.routing).refine_image(pixels, [prompt])
    if refined.mask_size is None or refined.mask_counts is None:
        raise PromptError(f"{photo}: {refined.error}")
    mask = decode_mask(refined.mask_size, refined.mask_counts)
    drawn = draw_overlay(
        pixels, mask, box_xyxy=prompt.box_xyxy, points_xy=prompt.points_xy, point_labels=prompt.point_labels
    )
    write_bytes(out, _png(mask * 255))
    write_bytes(overlay, _png(drawn))
    console = Console()
    console.print(_score_table(refined))
    console.print(f"mask:    {out}\noverlay: {overlay}", highlight=False, soft_wrap=True)


def _prompt(photo: str, prompt_id: str, box: tuple[float, float, float, float] | None, points: list[str]) -> Prompt:
    from stable_sam.errors import PromptError
    from stable_sam.records import Prompt

    points_xy, labels = [], []
    for text in points:
        try:
            x, y, label = _split(text)
            points_xy.append((float(x), float(y)))
            labels.append(int(label))
        except ValueError:
            raise PromptError(f"--point: expected X Y LABEL, three numbers, got {text!r}") from None
    return Prompt(
        prompt_id=prompt_id,
        image_id=photo,
        image_uri=photo,
        box_xyxy=box,
        points_xy=tuple(points_xy),
        point_labels=tuple(labels),
    )


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _are_numbers(text: str) -> bool:
    try:
        return all(isinstance(float(part), float) for part in _split(text))
    except ValueError:
        return False


def _run_config(path: Path | None, overrides: dict[str, str | None]) -> RunConfig:
    from stable_sam.config import RunConfig

    run = RunConfig() if path is None else RunConfig.from_yaml(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    content = run.model_dump()
    return RunConfig.from_dict({**content, "refiner": {**content["refiner"], **given}}, source="options")


def _beside(out: str) -> str:
    return out.removesuffix(".png") + "_overlay.png"


def _check_png(uri: str) -> None:
    from stable_sam.errors import InputError

    if not uri.endswith(".png"):
        raise InputError(f"{uri}: expected the name of a .png file: masks must not be compressed with losses")


def _png(pixels: Any) -> bytes:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _score_table(refined: RefinedMask) -> Any:
    from rich.table import Table

    names = ("predicted_iou", "stability_score", "prompt_stability", "dsp_weight", "box_agreement", "area", "bbox_xywh")
    table = Table("score", "value")
    for name in names:
        value = getattr(refined, name)
        if value is not None:
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    table.add_row("route", str(refined.route))
    table.add_row("route_reason", str(refined.route_reason))
    return table
