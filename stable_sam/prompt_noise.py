"""Makes worse prompts from good ones, for training, evaluation and prompt_stability: noisy boxes and few points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_BOX_SIDE = 1.0
"""Least side of a noisy box in pixels."""


def noisy_box(
    box_xyxy: NDArray[np.float64], scale: float, image_hw: tuple[int, int], rng: np.random.Generator, count: int
) -> NDArray[np.float64]:
    """Draw `count` noisy boxes as HQ-SAM's code does: centre and size move by U(-1, 1) * scale * (w/2, h/2, w, h).

    box_xyxy: (4,) pixels. Returns (count, 4) XYXY pixels, clipped to the image, every side at least MIN_BOX_SIDE.
    """
    x0, y0, x1, y1 = box_xyxy
    width, height = x1 - x0, y1 - y0
    move = rng.uniform(-1.0, 1.0, size=(count, 4)) * scale * np.array([width / 2, height / 2, width, height])
    center_x = (x0 + x1) / 2 + move[:, 0]
    center_y = (y0 + y1) / 2 + move[:, 1]
    half_w = np.maximum(width + move[:, 2], MIN_BOX_SIDE) / 2
    half_h = np.maximum(height + move[:, 3], MIN_BOX_SIDE) / 2
    boxes = np.stack((center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h), axis=1)
    return clip_boxes(boxes, image_hw)


def random_points(mask: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw `count` points from the mask (H, W), uniformly and with replacement.

    Returns (count, 2) x, y at pixel centres. Raises ValueError for an empty mask.
    """
    ys, xs = np.nonzero(mask)
    if len(xs) == 0:
        raise ValueError("cannot draw points from an empty mask")
    chosen = rng.integers(0, len(xs), size=count)
    return (np.stack((xs[chosen], ys[chosen]), axis=1) + 0.5).astype(np.float64, copy=False)


def clip_boxes(boxes: NDArray[np.floating], image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Clip boxes (B, 4) XYXY to the image; every side stays at least MIN_BOX_SIDE."""
    height, width = image_hw
    low = np.clip(boxes[:, :2], 0, [width - MIN_BOX_SIDE, height - MIN_BOX_SIDE])
    high = np.minimum(np.maximum(boxes[:, 2:], low + MIN_BOX_SIDE), [width, height])
    return np.concatenate((low, high), axis=1)
