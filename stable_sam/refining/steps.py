"""The three steps of refining an image, of which only the second needs the model.

    DecodedImage, prompts --prepare--> PreparedImage --Refiner.infer--> InferredImage --finish--> RefinedMask

`Refiner.refine_image` is their composition. The steps may run on different machines, because little passes between
them. For an input of 1024 pixels these are 3 MB of pixels for the image and each of its tiles, with the image's file
for tiles that an answer of the model calls for, and then 262 kB of logits for each prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stable_sam.bases import BASES
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
    """An image, resized for the model, and its checked prompts."""

    image_uri: str
    """URI of the image, for messages."""
    frame: Frame
    pixels: NDArray[np.uint8]
    """RGB pixels (h, w, 3) of `frame.resized_hw`; (0, 0, 3) when no prompt is usable."""
    prompts: tuple[Prompt, ...]
    """All prompts, in their order and in original pixels; boxes are clipped to the image, and an unusable prompt has an
    `error`."""
    tiles: TilePixels | None = None
    """Pixels of the image's tiles; None when every prompt is asked in the whole image."""

    def pixels_of(self, frame: Frame) -> NDArray[np.uint8]:
        """Return the RGB pixels (h, w, 3) of the view of `frame`, which is the whole image or a tile.

        Raises `ImageError` when the image cannot be decoded for the tile.
        """
        if frame.window_xywh is None:
            return self.pixels
        assert self.tiles is not None, "expected an image whose prompts may be asked in tiles"
        return self.tiles.resized(frame)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferredPrompts:
    """The model's answers to P prompts of one image in one view of it."""

    frame: Frame
    """Frame of the view."""
    indices: tuple[int, ...]
    """Indices of the P prompts among the image's prompts."""
    logits: NDArray[np.float32]
    """Mask logits (P, h, w) at a quarter of the model's input resolution; above 0 is object."""
    iou: NDArray[np.float32]
    """Predicted IoU (P,), as in `predict.Prediction`."""
    dsp_weight: NDArray[np.float32]
    """Alpha_1 of the plugin (P,), as in `predict.Prediction`."""
    prompt_stability: tuple[float | None, ...]
    """Prompt stability (mSF) of each prompt; None when it was not asked for."""
    second_pass: tuple[str | None, ...]
    """Second pass of each prompt, with which logits and predicted IoU are means of both passes; None without one."""
    view: tuple[View | None, ...]
    """View of each prompt, as in `RefinedMask.view`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferredImage:
    """An image after the model: masks are still logits, and no array has the size of the original image."""

    image_uri: str
    """URI of the image, for messages."""
    prompts: tuple[Prompt, ...]
    """All prompts, as in `PreparedImage`."""
    inferred: tuple[InferredPrompts, ...]
    """The model's answers; every usable prompt is in one of them."""


def prepare(
    decoded: DecodedImage,
    prompts: Sequence[Prompt],
    side: int,
    config: RefinerConfig,
    tiles: TilePixels,
    *,
    image_uri: str = "",
    cut_ahead: bool = False,
) -> PreparedImage:
    """Check the prompts, which are in original pixels, and resize the image for a model whose square input has this
    side in pixels.

    tiles: the pixels of the same image's tiles. cut_ahead: cut the tiles of boxes now, not in the model's process.
    Raises `ImageError` when a tile cannot be cut.
    """
    frame = Frame(decoded.original_hw, side, fit=BASES[config.model].fit)
    asked = tuple(checked(prompt, decoded.original_hw) for prompt in prompts)
    resized = np.empty((0, 0, 3), np.uint8)
    if any(prompt.error is None for prompt in asked):
        from stable_sam.images.resize import resize_image  # imported here, because it needs torch and `finish` does not

        with timed("resize"):
            resized = resize_image(decoded.pixels, frame, decoded.scale)
    plan = TilePlan(tile_rule(config, side), decoded.original_hw, asked)
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
    """Return the masks of all prompts of an image, in their order."""
    return in_order(
        image.prompts,
        (row for some in image.inferred for row in finish_prompts(image.prompts, some, config, routing)),
    )


def finish_prompts(
    prompts: Sequence[Prompt], inferred: InferredPrompts, config: RefinerConfig, routing: RoutingConfig
) -> Iterator[tuple[int, RefinedMask]]:
    """Yield the mask of each prompt in `inferred` with the prompt's index among the image's `prompts`.

    Only one mask of original size exists at a time.
    """
    for row, index in enumerate(inferred.indices):
        with timed("rle"):
            mask = routed(prompts[index], _refined(prompts[index], inferred, row, config), routing)
        yield index, mask


def in_order(prompts: Sequence[Prompt], masks: Iterator[tuple[int, RefinedMask]]) -> list[RefinedMask]:
    """Put `masks`, given with their prompts' indices, into the order of `prompts`, with failed masks for prompts that
    have an `error`."""
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
    """Return the IoU of the weak box with the mask's tight box; 0 for an empty mask."""
    x0, y0, x1, y1 = box_xyxy
    x, y, w, h = bbox_xywh
    common = max(0.0, min(x1, x + w) - max(x0, x)) * max(0.0, min(y1, y + h) - max(y0, y))
    return common / ((x1 - x0) * (y1 - y0) + w * h - common)
