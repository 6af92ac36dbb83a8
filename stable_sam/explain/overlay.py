"""Drawing of a mask and its weak prompt on the image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.records import BoxXYXY

MASK_RGB = (30, 144, 255)
BOX_RGB = (255, 210, 0)
POINT_RGB = {1: (40, 200, 80), 0: (230, 50, 50)}
"""Colours of points by label: 1 is object, 0 background."""
MASK_OPACITY = 0.45


def draw_overlay(
    image_rgb: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    *,
    box_xyxy: BoxXYXY | None = None,
    points_xy: Sequence[tuple[float, float]] = (),
    point_labels: Sequence[int] = (),
) -> NDArray[np.uint8]:
    """Return a copy of the image (H, W, 3) with `mask` (H, W) tinted and outlined, the weak box dashed, and points as
    discs coloured by label.

    Mask, box and points are in pixels of `image_rgb`; lines are thicker on larger images. Raises `ValueError` when mask
    and image differ in size.
    """
    canvas = np.array(image_rgb, dtype=np.uint8, order="C")
    line = max(1, round(max(canvas.shape[:2]) / 400))
    if mask is not None:
        _draw_mask(canvas, mask, line)
    if box_xyxy is not None:
        _draw_dashed_box(canvas, box_xyxy, line)
    for (x, y), label in zip(points_xy, point_labels, strict=True):
        center = (round(x), round(y))
        cv2.circle(canvas, center, 4 * line, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, center, 3 * line, POINT_RGB[label], -1, cv2.LINE_AA)
    return canvas


def _draw_mask(canvas: NDArray[np.uint8], mask: NDArray[np.bool_], line: int) -> None:
    if mask.shape != canvas.shape[:2]:
        raise ValueError(f"expected a mask of {canvas.shape[:2]} pixels, got {mask.shape}")
    tinted = canvas[mask] * (1 - MASK_OPACITY) + np.array(MASK_RGB) * MASK_OPACITY
    canvas[mask] = tinted.astype(np.uint8)
    outlines, _ = cv2.findContours(np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, MASK_RGB, line, cv2.LINE_AA)


def _draw_dashed_box(canvas: NDArray[np.uint8], box_xyxy: BoxXYXY, line: int) -> None:
    x0, y0, x1, y1 = box_xyxy
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        dashes = max(1, round(float(np.abs(end - start).max()) / (8 * line)))
        stops = start + (end - start) * (np.arange(2 * dashes) / (2 * dashes - 1))[:, None]
        for a, b in stops.reshape(-1, 2, 2).round().astype(int).tolist():
            cv2.line(canvas, a, b, BOX_RGB, line, cv2.LINE_AA)
