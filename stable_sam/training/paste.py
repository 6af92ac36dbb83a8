"""Copy-paste augmentation (Ghiasi et al. 2021): an object of another image is pasted onto a training image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.evaluation.metrics import tight_window

PASTED_SIDE = (0.2, 0.6)
"""Smallest and largest longest side of a pasted object, as parts of the image's longest side."""
MIN_PASTED_CELLS = 64
"""Smallest area of a pasted object in pixels; of a thin object fewer may be left after resizing."""
MIN_VISIBLE = 0.5
"""Smallest part of an object's area that must stay visible beside the pasted one for the object to be trained on."""


def paste_object(
    image: NDArray[np.uint8],
    masks: list[NDArray[np.bool_]],
    source: NDArray[np.uint8],
    source_mask: NDArray[np.bool_],
    rng: np.random.Generator,
) -> list[NDArray[np.bool_]]:
    """Paste the object `source_mask` (h, w) of `source` (h, w, 3) onto `image` (H, W, 3), in place.

    Its size and position are random. masks: the objects of `image`, each (S, S) with the image at the top left. Returns
    the pasted object's mask and those of the objects that are still visible. When fewer than `MIN_PASTED_CELLS` pixels
    of the object are left, nothing is pasted and `masks` are returned.
    """
    window = tight_window(source_mask)
    if window is None:
        return masks
    height, width = image.shape[:2]
    patch, shape = source[window], source_mask[window].astype(np.uint8)
    scale = rng.uniform(*PASTED_SIDE) * max(height, width) / max(shape.shape)
    w = int(np.clip(round(shape.shape[1] * scale), 1, width))
    h = int(np.clip(round(shape.shape[0] * scale), 1, height))
    cover = cv2.resize(shape * 255, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    patch = np.asarray(cv2.resize(patch, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
    if (cover > 127).sum() < MIN_PASTED_CELLS:
        return masks
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))

    area: NDArray[Any] = image[y : y + h, x : x + w]
    weight = (cv2.GaussianBlur(cover, (3, 3), 0).astype(np.float32) / 255.0)[
        :, :, None
    ]  # soft, as a lens draws borders
    area[...] = np.round(patch * weight + area * (1.0 - weight)).astype(np.uint8)

    pasted = np.zeros_like(masks[0])
    pasted[y : y + h, x : x + w] = cover > 127
    left = [mask & ~pasted for mask in masks]
    return [pasted, *(part for part, mask in zip(left, masks, strict=True) if part.sum() >= MIN_VISIBLE * mask.sum())]
