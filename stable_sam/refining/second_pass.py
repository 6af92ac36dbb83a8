"""The second pass of a prompt: the model answers it on the mirrored image, too, and both answers are averaged.

`RefinerConfig.second_pass` says which prompts take it. Three other second passes did not raise the IoU of the bundled
model's masks (docs/results.md): the consensus of the jittered prompts' masks, the mask's own box as a prompt, and a
closer view of objects that are large enough already. Small objects get a closer view by `images.tiles`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_sam.images.frames import Frame
from stable_sam.modeling.load import LoadedModel
from stable_sam.refining.predict import ImageView, PromptArrays, embed_resized, predict

_SURE = 1e-6
"""Distance that mean probabilities keep from 0 and 1, so that their log-odds are finite."""


def mirrored_view(model: LoadedModel, resized: NDArray[np.uint8], frame: Frame) -> ImageView:
    """Encode the mirrored image: `resized` (h, w, 3) of `frame.resized_hw`, RGB, with left and right exchanged."""
    return embed_resized(model, resized[:, ::-1].copy(), frame)


def ask_mirrored(
    model: LoadedModel, view: ImageView, prompts: PromptArrays, chunk_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ask the model P prompts, given in pixels of the unmirrored image, on the mirrored `view`.

    Returns the logits (P, h, w), mirrored back, and the predicted IoU (P,).
    """
    left, _, width, _ = view.frame.region_xywh
    prediction = predict(model, view, mirror_prompts(prompts, 2 * left + width), chunk_size)
    return mirror_logits(prediction.logits, view.frame), prediction.iou


def mirror_prompts(prompts: PromptArrays, width: int) -> PromptArrays:
    """Mirror prompts left to right.

    width: the image's width in original pixels, or for a window of the image the sum of its left and right edges.
    """
    boxes, points = prompts.boxes_xyxy, prompts.points_xy
    if boxes is not None:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if points is not None:
        points = np.stack([width - points[..., 0], points[..., 1]], axis=-1)
    return PromptArrays(boxes_xyxy=boxes, points_xy=points, point_labels=prompts.point_labels)


def mirror_logits(logits: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """Mirror the image's part of the columns of logits (P, h, w).

    Columns are interpolated, because the image may end inside one. The padding repeats the outermost column.
    """
    columns = logits.shape[2]
    image_columns = frame.resized_hw[1] * columns / frame.side
    places = np.clip(image_columns - 1 - np.arange(columns), 0, columns - 1)
    left = np.floor(places).astype(np.intp)
    right = np.minimum(left + 1, columns - 1)
    part = (places - left).astype(np.float32)
    mirrored: NDArray[np.float32] = logits[..., left] * (1 - part) + logits[..., right] * part
    return mirrored


def consensus(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of the mean of two probabilities, which are given as logits of equal shape."""
    mean = np.clip((_probability(first) + _probability(second)) / 2, _SURE, 1 - _SURE)
    logits: NDArray[np.float32] = np.log(mean / (1 - mean))
    return logits


def _probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    probability: NDArray[np.float32] = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return probability
