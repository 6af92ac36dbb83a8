"""An image's way in three stages: the first and the last need a CPU, the one between them, `Refiner.infer`, the model.

    picture, prompts --prepare--> PreparedImage --Refiner.infer--> InferredImage --finish--> RefinedMask for each prompt

What passes between them is small (3 MB of pixels for the image and each of its tiles, with the file for tiles that
nobody foresees, then 262 kB a prompt, for an input of 1024 pixels), so that the stages may run on different machines.
Their composition is `Refiner.refine_image`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.images.decode import DecodedImage
from stable_sam.images.frames import Frame
from stable_sam.images.tile_pixels import TilePixels
from stable_sam.images.tiles import TilePlan, tile_rule
from stable_sam.prompt_check import checked
from stable_sam.records import BoxXYXY, Prompt, RefinedMask, View
from stable_sam.refining.routing import failed_mask, routed
from stable_sam.refining.stability import stability_score
from stable_sam.rle import encode_patch
from stable_sam.timing import timed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedImage:
    """An image and its prompts as the model takes them."""

    image_uri: str
    """For messages."""
    frame: Frame
    pixels: NDArray[np.uint8]
    """(h, w, 3) of `frame.resized_hw`, RGB; (0, 0, 3) when no prompt is usable."""
    prompts: tuple[Prompt, ...]
    """All, in their order, in original pixels; a box is clipped to the image, and what cannot be used has an
    `error`."""
    tiles: TilePixels | None = None
    """Pixels of the image's tiles; None: every prompt is asked in the whole image."""

    def pixels_of(self, frame: Frame) -> NDArray[np.uint8]:
        """The pixels (h, w, 3) of the view of `frame`, the whole image or a tile; raises `ImageError`."""
        if frame.window_xywh is None:
            return self.pixels
        assert self.tiles is not None, "asked for a tile of an image that takes none"
        return self.tiles.resized(frame)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferredPrompts:
    """What the model says to P prompts of one image in one view of it."""

    frame: Frame
    """Of the view."""
    indices: tuple[int, ...]
    """(P,), their places among the image's prompts."""
    logits: NDArray[np.float32]
    """(P, h, w), a quarter of the model's square input; above 0 is object."""
    iou: NDArray[np.float32]
    """(P,), see `predict.Prediction`."""
    dsp_weight: NDArray[np.float32]
    """(P,), see `predict.Prediction`."""
    prompt_stability: tuple[float | None, ...]
    """(P,); None where it was not asked for."""
    second_pass: tuple[str | None, ...]
    """(P,), the second pass whose mean with the first the logits and predicted IoU are; None where there was none."""
    view: tuple[View | None, ...]
    """(P,), see `RefinedMask.view`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferredImage:
    """An image through the model: masks are logits still, and nothing has the size of the original."""

    image_uri: str
    """For messages."""
    prompts: tuple[Prompt, ...]
    """As in `PreparedImage`."""
    inferred: tuple[InferredPrompts, ...]
    """Every usable prompt once."""


def prepare(
    picture: DecodedImage,
    prompts: Sequence[Prompt],
    side: int,
    config: RefinerConfig,
    tiles: TilePixels,
    *,
    image_uri: str = "",
    cut_ahead: bool = False,
) -> PreparedImage:
    """The image and its prompts, which are in original pixels, for a model whose square input has this side.

    tiles: all pixels of the picture. cut_ahead: tiles of boxes are cut here and not where the model is.
    """
    frame = Frame(picture.original_hw, side)
    asked = tuple(checked(prompt, picture.original_hw) for prompt in prompts)
    resized = np.empty((0, 0, 3), np.uint8)
    if any(prompt.error is None for prompt in asked):
        from stable_sam.images.resize import resize_image  # not above: whoever only finishes needs no torch

        with timed("resize"):
            resized = resize_image(picture.pixels, frame, picture.scale)
    plan = TilePlan(tile_rule(config, side), picture.original_hw, asked)
    if cut_ahead:
        tiles.cut_ahead(replace(frame, window_xywh=window) for window in plan.first_tiles())
    return PreparedImage(
        image_uri=image_uri,
        frame=frame,
        pixels=resized,
        prompts=asked,
        tiles=tiles if plan.may_take_tiles() else None,
    )


def finish(image: InferredImage, config: RefinerConfig, routing: RoutingConfig) -> list[RefinedMask]:
    """The masks of all prompts of an image, in their order."""
    return in_order(
        image.prompts,
        (row for some in image.inferred for row in finish_prompts(image.prompts, some, config, routing)),
    )


def finish_prompts(
    prompts: Sequence[Prompt], inferred: InferredPrompts, config: RefinerConfig, routing: RoutingConfig
) -> Iterator[tuple[int, RefinedMask]]:
    """The masks of `inferred`, some of the image's `prompts`, with their places among these.

    Only one mask of original size exists at a time.
    """
    for row, index in enumerate(inferred.indices):
        with timed("rle"):
            mask = routed(prompts[index], _refined(prompts[index], inferred, row, config), routing)
        yield index, mask


def in_order(prompts: Sequence[Prompt], masks: Iterator[tuple[int, RefinedMask]]) -> list[RefinedMask]:
    """The masks and the failed ones of all other prompts, each at its prompt's place."""
    made = dict(masks)
    return [
        made[index] if prompt.error is None else failed_mask(prompt.prompt_id, prompt.error)
        for index, prompt in enumerate(prompts)
    ]


def _refined(prompt: Prompt, inferred: InferredPrompts, row: int, config: RefinerConfig) -> RefinedMask:
    frame, logits, iou = inferred.frame, inferred.logits[row], float(inferred.iou[row])
    if not (np.isfinite(logits).all() and np.isfinite(iou)):
        return failed_mask(prompt.prompt_id, f"expected finite numbers from {config.model}, got NaN or infinity")
    patch = frame.to_original_above(logits, -config.stability_offset)
    encoded = encode_patch(patch.values, patch.top, patch.left, frame.original_hw)
    return RefinedMask(
        prompt_id=prompt.prompt_id,
        status="ok",
        mask_size=encoded.size_hw,
        mask_counts=encoded.counts,
        bbox_xywh=encoded.bbox_xywh,
        area=encoded.area,
        predicted_iou=iou,
        stability_score=stability_score(patch.values, config.stability_offset),
        prompt_stability=inferred.prompt_stability[row],
        dsp_weight=float(inferred.dsp_weight[row]),
        second_pass=inferred.second_pass[row],
        view=inferred.view[row],
        tile_xywh=frame.window_xywh,
        box_agreement=None if prompt.box_xyxy is None else _box_agreement(prompt.box_xyxy, encoded.bbox_xywh),
    )


def _box_agreement(box_xyxy: BoxXYXY, bbox_xywh: BoxXYXY) -> float:
    """IoU of the weak box with the mask's tight box; 0 for an empty mask."""
    x0, y0, x1, y1 = box_xyxy
    x, y, w, h = bbox_xywh
    common = max(0.0, min(x1, x + w) - max(x0, x)) * max(0.0, min(y1, y + h) - max(y0, y))
    return common / ((x1 - x0) * (y1 - y0) + w * h - common)
