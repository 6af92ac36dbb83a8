"""The part of an image that a training sample shows: its window, cut out and resized, with masks and colours."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.records import Window

MIN_OBJECT_FRACTION = 0.001
"""Smallest object, as a part of the square input's area; a smaller one has too few mask cells to learn a shape from."""
WINDOW_SCALES = 1.5, 8.0
"""Smallest and largest side of a window around an object, in longest sides of its box."""
SMALLEST_WINDOW = 48
"""Smallest side of a window in pixels of the image; a closer view shows no more detail."""
MIN_VISIBLE_PART = 0.4
"""Smallest part of an object's area that a window must show for the object to be trained on."""
SAM_PIXEL_MEAN = (124, 116, 104)
"""`pixel_mean` of segment_anything, RGB, rounded."""


def random_window(size_hw: tuple[int, int], bbox_xywh: NDArray[np.float64], rng: np.random.Generator) -> Window:
    """Draw the window of an image that a sample shows.

    It is the whole image in two samples of five, a random crop in one, and in two a square around the object of
    `bbox_xywh`. The squares show small objects as large as tiles do, and every object at many sizes.
    """
    height, width = size_hw
    kind = rng.random()
    if kind < 0.4:
        return 0, 0, width, height
    if kind < 0.6:
        zoom, aspect = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        w, h = width * zoom * aspect, height * zoom / aspect
        x, y = rng.uniform(0, max(width - w, 0)), rng.uniform(0, max(height - h, 0))
    else:
        return window_around(size_hw, bbox_xywh, rng)
    return int(x), int(y), int(min(max(w, 32), width - int(x))), int(min(max(h, 32), height - int(y)))


def window_around(size_hw: tuple[int, int], bbox_xywh: NDArray[np.float64], rng: np.random.Generator) -> Window:
    """Draw a square window of random size that holds the whole box at a random place, and clip it to the image."""
    height, width = size_hw
    left, top, box_w, box_h = bbox_xywh
    side = max(max(box_w, box_h) * np.exp(rng.uniform(*np.log(WINDOW_SCALES))), SMALLEST_WINDOW)
    x, y = (max(0, int(low - rng.uniform(0, side - length))) for low, length in ((left, box_w), (top, box_h)))
    return x, y, int(min(side + 1, width - x)), int(min(side + 1, height - y))


def cut_masks(masks: NDArray[np.uint8], window: Window, size: int, flip: bool) -> list[NDArray[np.bool_]]:
    """Cut K masks (H, W, K) to the window and resize them like `cut_image`, each padded to (size, size).

    Leaves out objects of which the window shows too little (`MIN_VISIBLE_PART`) or that are too small
    (`MIN_OBJECT_FRACTION`).
    """
    x, y, w, h = window
    result = []
    for index in range(masks.shape[2]):
        whole = int(masks[:, :, index].sum())
        part = np.ascontiguousarray(masks[y : y + h, x : x + w, index])
        if part.sum() < MIN_VISIBLE_PART * whole:
            continue
        resized = _pad(_resize(part * 255, size, flip), size) > 127
        if resized.sum() >= MIN_OBJECT_FRACTION * size**2:
            result.append(resized)
    return result


def cut_image(image: NDArray[np.uint8], window: Window, size: int, flip: bool) -> NDArray[np.uint8]:
    """Cut the window out of the image and resize its longest side to `size`; `flip` mirrors it left to right."""
    x, y, w, h = window
    return _resize(np.ascontiguousarray(image[y : y + h, x : x + w]), size, flip)


def _resize(array: NDArray[np.uint8], size: int, flip: bool) -> NDArray[np.uint8]:
    h, w = array.shape[:2]
    scale = size / max(h, w)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(array, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=method)
    return np.ascontiguousarray(resized[:, ::-1]) if flip else resized  # type: ignore[return-value]


def pad_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pad (h, w, 3) at the bottom and right to (size, size, 3) with SAM's pixel mean, which normalisation maps to 0."""
    padded = np.full((size, size, 3), SAM_PIXEL_MEAN, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def _pad(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.pad(mask, [(0, size - mask.shape[0]), (0, size - mask.shape[1])])


def augment_colors(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change contrast, brightness and saturation of an RGB image at random; a tenth of the images become gray."""
    table = np.clip((np.arange(256) - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-30, 30), 0, 255).astype(
        np.uint8
    )
    out = cv2.LUT(image, table)
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.6, 1.4)
    gray = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(out, saturation, gray, 1.0 - saturation, 0.0)  # type: ignore[return-value]
