"""Two different scores: `stability_score` is SAM's own (one mask), `prompt_stability` the paper's mSF (K prompts)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stable_sam.prompt_noise import clip_boxes, noisy_box
from stable_sam.records import Prompt, Window

VALUES_AT_ONCE = 2**18
"""Number of logits that are compared at a time, so that they and the results stay in the processor's caches."""


def stability_score(logits: NDArray[np.float32], offset: float) -> float:
    """Return SAM's stability score: the IoU of the masks that logits of any shape give above +offset and above -offset.

    It is 0 when no logit is above -offset, where SAM's own code divides 0 by 0.
    """
    values = logits.reshape(-1, order="A")  # no copy of a contiguous array in either order
    inner = outer = 0
    for first in range(0, values.size, VALUES_AT_ONCE):
        some = values[first : first + VALUES_AT_ONCE]
        outer += int(np.count_nonzero(some > -offset))
        inner += int(np.count_nonzero(some > offset))
    return inner / outer if outer else 0.0


def prompt_stability(masks: Iterable[NDArray[np.bool_]]) -> float:
    """Return mSF = 1/K sum_i IoU(M_i, M_union) of K masks (H, W) of one object, a number in (0, 1].

    It is 0 when all masks are empty, because a prompt that finds nothing is not stable. Every mask lies inside the
    union, so IoU(M_i, M_union) is |M_i| / |M_union|. Only the union and one mask of the iterable are in memory at a
    time. Raises `ValueError` when there is no mask.
    """
    count = covered = 0
    union: NDArray[np.bool_] | None = None
    for mask in masks:
        count += 1
        covered += int(np.count_nonzero(mask))
        union = mask.copy() if union is None else np.logical_or(union, mask, out=union)
    if union is None:
        raise ValueError("prompt_stability needs at least one mask")
    union_area = int(np.count_nonzero(union))
    return covered / (count * union_area) if union_area else 0.0


def jittered_prompts(
    prompt: Prompt,
    count: int,
    scale: float,
    *,
    object_side: float,
    image_hw: tuple[int, int],
    window_xywh: Window | None = None,
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Draw K = `count` prompts near `prompt`, as a weak annotator could have drawn it: boxes (K, 4), points (K, N, 2).

    Both are in original pixels, and None when the prompt has none. Boxes get the noise of `noisy_box`. Each point moves
    by U(-1, 1) * scale * (w/2, h/2) of the box, as a box's centre does; without a box, w and h are `object_side`, the
    side in pixels of a square with the object's area. All stay in the image and in the window that the prompt is asked
    in. The random numbers depend on the prompt_id alone: a prompt gets the same noise on any machine, in any order.
    """
    rng = np.random.default_rng(_seed(prompt.prompt_id))
    boxes = None
    side_wh = np.array([object_side, object_side])
    if prompt.box_xyxy is not None:
        box = np.array(prompt.box_xyxy)
        boxes = noisy_box(box, scale, image_hw, rng, count)
        side_wh = box[2:] - box[:2]
    points = None
    if prompt.points_xy:
        move = rng.uniform(-1.0, 1.0, size=(count, len(prompt.points_xy), 2)) * scale * side_wh / 2
        points = np.clip(np.array(prompt.points_xy) + move, 0.0, np.array(image_hw[::-1], dtype=np.float64))
    if window_xywh is not None:
        x, y, width, height = window_xywh
        if boxes is not None:
            start = np.array([x, y, x, y])
            boxes = clip_boxes(boxes - start, (height, width)) + start
        if points is not None:
            points = np.clip(points, (x, y), (x + width, y + height))
    return boxes, points


def _seed(prompt_id: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8], "little")
