"""`stable-sam explain`: draw what the decoder attends to for one weak prompt, SAM beside Stable-SAM."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.one_image import Box, ImageFile, Points, PromptId, check_suffix, prompt_of, read_image, write_image
from flows.commands.options import Checkpoint, Config, Model, Plugin, read_config


def explain(
    image: ImageFile,
    box: Box = None,
    point: Points = None,
    out: Annotated[str, typer.Option(help="File to draw to, a .png or .jpg (path or URI).")] = "explain.png",
    model: Model = None,
    checkpoint: Checkpoint = None,
    plugin: Plugin = None,
    config: Config = None,
    prompt_id: PromptId = "explain",
) -> None:
    """Draw SAM beside Stable-SAM for one weak box, points, or both: masks, attended features, offsets and alpha."""
    from stable_sam.explain.drawing import draw
    from stable_sam.explain.explanation import explain as explain_prompt
    from stable_sam.refining.refiner import Refiner

    check_suffix(out, (".png", ".jpg"), "the explanation is drawn as an image")
    run = read_config(config, model, checkpoint=checkpoint, plugin=plugin)
    limit = run.refiner.max_image_pixels
    data, pixels, prompt = read_image(image, prompt_of(image, prompt_id, box, point), limit)
    refiner = Refiner(run.refiner, run.routing)
    explanation = explain_prompt(refiner, pixels, prompt, decoded=refiner.decode(data, name=image))
    write_image(out, draw(explanation))
    typer.echo(f"alpha_1 {explanation.alpha[0]:.3f}, alpha_2 {explanation.alpha[1]:.3f}; drawn to {out}")
