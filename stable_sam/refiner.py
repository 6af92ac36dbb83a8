"""Weak prompts of one image in, masks with scores out: the only place where pixels, tensors and records meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stable_sam.calibration.load import calibrated_routing
from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.data.images import upright_rgb
from stable_sam.errors import ImageError, PromptError
from stable_sam.frames import Frame
from stable_sam.identity import ModelIdentity
from stable_sam.modeling.load import load_model
from stable_sam.predict import ImageView, Prediction, PromptArrays, embed_image, predict
from stable_sam.prompt_check import check_prompt
from stable_sam.records import BoxXYXY, Prompt, RefinedMask
from stable_sam.rle import encode_mask
from stable_sam.routing import failed_mask, routed
from stable_sam.stability import jittered_prompts, prompt_stability, stability_score


class Refiner:
    """Loads a model once; `refine_image` is then a pure function of the image and its prompts.

    Prompts that pass the decoder together all have the same number of tokens, so nothing is padded: a prompt's row does
    not depend on its neighbours but for rounding (scores within 1e-4, masks of IoU above 0.999).
    """

    def __init__(self, config: RefinerConfig | None = None, routing: RoutingConfig | None = None) -> None:
        """Load the model. Raises `ConfigError`, `WeightsError` and `StorageError`."""
        self.config = config or RefinerConfig()
        self.model = load_model(self.config)
        self.routing = calibrated_routing(routing or RoutingConfig(), self.config, self.model.identity)

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, for provenance."""
        return self.model.identity

    def refine_image(self, image: NDArray[np.uint8] | Image.Image, prompts: Sequence[Prompt]) -> list[RefinedMask]:
        """The masks of `prompts`, in their order, one for each; a prompt that cannot be used has status "failed".

        image: (H, W, 3) RGB and upright, or a Pillow image of any mode, which is turned upright here.
        Raises `ImageError` for another kind of array. The encoder runs once, or not at all without a usable prompt.
        """
        pixels = rgb_pixels(image)
        height, width = pixels.shape[:2]
        results: dict[int, RefinedMask] = {}
        usable: dict[int, Prompt] = {}
        for index, prompt in enumerate(prompts):
            try:
                usable[index] = check_prompt(prompt, (height, width))
            except PromptError as error:
                results[index] = failed_mask(prompt.prompt_id, str(error))
        if usable:
            view = embed_image(self.model, pixels)
            for indices in _groups(usable, self.config.prompt_chunk_size):
                refined = self.refine_group(view, [usable[index] for index in indices])
                results.update(zip(indices, refined, strict=True))
        return [results[index] for index in range(len(prompts))]

    def refine_group(self, view: ImageView, prompts: list[Prompt]) -> Iterator[RefinedMask]:
        """The masks of checked prompts with equally many tokens, of one image whose embedding is at hand.

        Only one mask of original size exists at a time.
        """
        prediction = predict(self.model, view, prompt_arrays(prompts), self.config.prompt_chunk_size)
        masks = [_refined(prompt, view.frame, prediction, row, self.config) for row, prompt in enumerate(prompts)]
        stabilities = self._prompt_stabilities(view, prompts, masks)
        for prompt, mask, stability in zip(prompts, masks, stabilities, strict=True):
            scored = mask if mask.status == "failed" else replace(mask, prompt_stability=stability)
            yield routed(prompt, scored, self.routing)

    def _prompt_stabilities(
        self, view: ImageView, prompts: list[Prompt], masks: list[RefinedMask]
    ) -> list[float] | list[None]:
        """mSF over K jittered prompts of each prompt, on masks at the resolution of the model's input."""
        count = self.config.jitter_count
        if count == 0:
            return [None] * len(prompts)
        jittered = [
            jittered_prompts(
                prompt, count, self.config.jitter_scale,
                object_side=sqrt(mask.area or 0), image_hw=view.frame.original_hw,
            )
            for prompt, mask in zip(prompts, masks, strict=True)
        ]  # fmt: skip
        boxes = [box for box, _ in jittered if box is not None]
        points = [point for _, point in jittered if point is not None]
        nearby = PromptArrays(
            boxes_xyxy=np.concatenate(boxes) if boxes else None,
            points_xy=np.concatenate(points) if points else None,
            point_labels=np.repeat([p.point_labels for p in prompts], count, axis=0) if points else None,
        )
        logits = predict(self.model, view, nearby, self.config.prompt_chunk_size).logits
        per_prompt = logits.reshape(len(prompts), count, *logits.shape[1:])
        return [prompt_stability(np.stack([view.frame.to_input(one) > 0 for one in group])) for group in per_prompt]


def _refined(prompt: Prompt, frame: Frame, prediction: Prediction, row: int, config: RefinerConfig) -> RefinedMask:
    logits, iou = prediction.logits[row], float(prediction.iou[row])
    if not (np.isfinite(logits).all() and np.isfinite(iou)):
        return failed_mask(prompt.prompt_id, f"expected finite numbers from {config.model}, got NaN or infinity")
    full_size = frame.to_original(logits)
    encoded = encode_mask(full_size > 0)
    return RefinedMask(
        prompt_id=prompt.prompt_id,
        status="ok",
        mask_size=encoded.size_hw,
        mask_counts=encoded.counts,
        bbox_xywh=encoded.bbox_xywh,
        area=encoded.area,
        predicted_iou=iou,
        stability_score=stability_score(full_size, config.stability_offset),
        dsp_weight=float(prediction.dsp_weight[row]),
        box_agreement=None if prompt.box_xyxy is None else _box_agreement(prompt.box_xyxy, encoded.bbox_xywh),
    )


def _groups(prompts: dict[int, Prompt], chunk_size: int) -> Iterator[list[int]]:
    """Indices of prompts with the same kind and number of tokens, at most `chunk_size` together, in input order."""
    kinds: dict[tuple[bool, int], list[int]] = {}
    for index, prompt in prompts.items():
        kinds.setdefault((prompt.box_xyxy is not None, len(prompt.points_xy)), []).append(index)
    for indices in kinds.values():
        for start in range(0, len(indices), chunk_size):
            yield indices[start : start + chunk_size]


def prompt_arrays(prompts: Sequence[Prompt]) -> PromptArrays:
    """Prompts with equally many tokens as the arrays that `predict` takes."""
    first = prompts[0]
    return PromptArrays(
        boxes_xyxy=np.array([p.box_xyxy for p in prompts], dtype=np.float64) if first.box_xyxy else None,
        points_xy=np.array([p.points_xy for p in prompts], dtype=np.float64) if first.points_xy else None,
        point_labels=np.array([p.point_labels for p in prompts], dtype=np.int64) if first.points_xy else None,
    )


def _box_agreement(box_xyxy: BoxXYXY, bbox_xywh: BoxXYXY) -> float:
    """IoU of the weak box with the mask's tight box; 0 for an empty mask."""
    x0, y0, x1, y1 = box_xyxy
    x, y, w, h = bbox_xywh
    common = max(0.0, min(x1, x + w) - max(x0, x)) * max(0.0, min(y1, y + h) - max(y0, y))
    return common / ((x1 - x0) * (y1 - y0) + w * h - common)


def rgb_pixels(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a Pillow image, turned upright, or an array as it is; raises `ImageError` for another array."""
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    return image
