"""Converts masks to polygons that keep every pixel, hole and part, and back.

The rings run a quarter of a pixel inside the mask's border, not along it and not through the centres of its pixels.
They give the same mask back under both rules in use: a pixel is inside when its centre is (even-odd), and OpenCV's
filling of coordinates that are truncated to whole numbers. Rounding coordinates to a tenth of a pixel does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""Corners (N, 2) of a closed line, XY pixels, float64; N >= 3, and the first corner is not repeated at the end."""


@dataclass(frozen=True, slots=True)
class Part:
    """A connected part of a mask: its outer ring and the rings of its holes."""

    outer: Ring
    holes: tuple[Ring, ...]


def polygon_parts(mask: NDArray[np.bool_]) -> list[Part]:
    """Return the connected parts of `mask` (H, W); an empty mask has none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    crop = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # OpenCV's contours join the centres of border pixels. With each pixel doubled to 2 x 2, these centres lie a quarter
    # of an original pixel inside the border.
    doubled = np.pad(crop.repeat(2, axis=0).repeat(2, axis=1), 1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [(contour[:, 0].astype(np.float64) - 0.5) / 2 + (left, top) for contour in contours]
    parents = hierarchy[0, :, 3]
    return [
        Part(ring, tuple(rings[hole] for hole in np.flatnonzero(parents == number)))
        for number, ring in enumerate(rings)
        if parents[number] < 0
    ]


def one_ring(parts: list[Part]) -> Ring:
    """Join all parts and holes into one closed line (N, 2), for formats that hold one line for each object.

    The line goes from its nearest corner to each further ring, around that ring, and back by the same way. Such a
    bridge encloses no area. Programs that also draw the line itself paint the bridge one pixel wide.
    """
    from scipy.spatial import cKDTree  # planning imports this module and draws nothing

    line, *others = [ring for part in parts for ring in (part.outer, *part.holes)]
    for ring in others:
        distances, corners = cKDTree(ring).query(line)
        place = int(distances.argmin())
        corner = int(corners[place])
        line = np.concatenate(
            [line[: place + 1], np.roll(ring, -corner, axis=0), ring[corner : corner + 1], line[place:]]
        )
    return line


def fill(rings: Sequence[NDArray[np.float64]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of the pixels inside `rings` ((N, 2) XY pixels each); a ring inside another is a hole.

    A line that goes forth and back by the same way, such as the bridges of `one_ring`, fills nothing. The filling of
    OpenCV, Pillow and pycocotools lacks this property: they draw the line itself or move it.
    """
    height, width = size_hw
    turns = np.zeros((height, width + 1), np.bool_)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (y0, y1))
            rows = np.arange(first, last)
            if rows.size:
                crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                turns[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] ^= True
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(turns, axis=1)[:, :width]
    return inside
