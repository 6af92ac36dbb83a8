"""An image's way in three stages: the first and the last need a CPU, the one between them, `Refiner.infer`, the model.

    picture, prompts --prepare--> PreparedImage --Refiner.infer--> InferredImage --finish--> RefinedMask for each prompt

What passes between them is small (3 MB of pixels, then 262 kB a prompt, for an input of 1024 pixels), whatever the
size of the original, so that the stages may run on different machines. Their composition is `Refiner.refine_image`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.data.images import Picture
from stable_sam.errors import PromptError
from stable_sam.frames import Frame
from stable_sam.prompt_check import check_prompt
from stable_sam.records import BoxXYXY, Prompt, RefinedMask
from stable_sam.rle import encode_patch
from stable_sam.routing import failed_mask, routed
from stable_sam.stability import stability_score
from stable_sam.stage_clock import timed


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferredPrompts:
    """What the model says to P prompts of one image."""

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
    """(P,), the second pass that a poor prompt's logits and predicted IoU are from; None on the regular path."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferredImage:
    """An image through the model: masks are logits still, and nothing has the size of the original."""

    image_uri: str
    """For messages."""
    frame: Frame
    prompts: tuple[Prompt, ...]
    """As in `PreparedImage`."""
    inferred: tuple[InferredPrompts, ...]
    """Every usable prompt once."""


def prepare(picture: Picture, prompts: Sequence[Prompt], side: int, *, image_uri: str = "") -> PreparedImage:
    """The image and its prompts, which are in original pixels, for a model whose square input has this side."""
    frame = Frame(picture.original_hw, side)
    checked = tuple(_checked(prompt, picture.original_hw) for prompt in prompts)
    resized = np.empty((0, 0, 3), np.uint8)
    if any(prompt.error is None for prompt in checked):
        from stable_sam.resize import resize_image  # not above: whoever only finishes needs no torch

        with timed("resize"):
            resized = resize_image(picture.pixels, frame, picture.scale)
    return PreparedImage(image_uri=image_uri, frame=frame, pixels=resized, prompts=checked)


def finish(image: InferredImage, config: RefinerConfig, routing: RoutingConfig) -> list[RefinedMask]:
    """The masks of all prompts of an image, in their order."""
    return in_order(
        image.prompts,
        (row for some in image.inferred for row in finish_prompts(image.frame, image.prompts, some, config, routing)),
    )


def finish_prompts(
    frame: Frame, prompts: Sequence[Prompt], inferred: InferredPrompts, config: RefinerConfig, routing: RoutingConfig
) -> Iterator[tuple[int, RefinedMask]]:
    """The masks of `inferred`, some of the image's `prompts`, with their places among these.

    Only one mask of original size exists at a time.
    """
    for row, index in enumerate(inferred.indices):
        with timed("rle"):
            mask = routed(prompts[index], _refined(prompts[index], frame, inferred, row, config), routing)
        yield index, mask


def in_order(prompts: Sequence[Prompt], masks: Iterator[tuple[int, RefinedMask]]) -> list[RefinedMask]:
    """The masks and the failed ones of all other prompts, each at its prompt's place."""
    made = dict(masks)
    return [
        made[index] if prompt.error is None else failed_mask(prompt.prompt_id, prompt.error)
        for index, prompt in enumerate(prompts)
    ]


def _checked(prompt: Prompt, image_hw: tuple[int, int]) -> Prompt:
    try:
        return check_prompt(prompt, image_hw)
    except PromptError as error:
        return replace(prompt, error=str(error))


def _refined(prompt: Prompt, frame: Frame, inferred: InferredPrompts, row: int, config: RefinerConfig) -> RefinedMask:
    logits, iou = inferred.logits[row], float(inferred.iou[row])
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
        box_agreement=None if prompt.box_xyxy is None else _box_agreement(prompt.box_xyxy, encoded.bbox_xywh),
    )


def _box_agreement(box_xyxy: BoxXYXY, bbox_xywh: BoxXYXY) -> float:
    """IoU of the weak box with the mask's tight box; 0 for an empty mask."""
    x0, y0, x1, y1 = box_xyxy
    x, y, w, h = bbox_xywh
    common = max(0.0, min(x1, x + w) - max(x0, x)) * max(0.0, min(y1, y + h) - max(y0, y))
    return common / ((x1 - x0) * (y1 - y0) + w * h - common)
