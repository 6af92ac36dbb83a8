"""Masks as polygons that keep every pixel, hole and part.

The rings run a quarter of a pixel inside the mask's border, not along it and not through the centres of its pixels. So
they give the same mask back under each of the rules in use: a pixel is in when its centre is (even-odd), and OpenCV's
filling of coordinates cut to whole numbers; and coordinates may be rounded by a tenth of a pixel on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Ring = NDArray[np.float64]
"""Corners (N, 2) of a closed line, XY pixels; N >= 3, the first corner is not repeated."""


@dataclass(frozen=True, slots=True)
class Part:
    """A connected part of a mask: its outer ring and the rings of its holes."""

    outer: Ring
    holes: tuple[Ring, ...]


def polygon_parts(mask: NDArray[np.bool_]) -> list[Part]:
    """The parts of `mask` (H, W), none of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    crop = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # Each pixel as 2 x 2: OpenCV's lines, which join the centres of border pixels, are then a quarter inside.
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
    """All parts and holes in one closed line, for formats with one line for an object.

    From its nearest corner the line goes to each further ring, around it, and back the same way: such a bridge has no
    inside. Programs that draw the line itself, and not what is inside, paint a pixel's width of it.
    """
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
    """The mask (H, W) inside `rings` ((N, 2) XY each), of which a ring inside another is a hole.

    A line that is walked there and back, as between the parts of a polygon that was joined, leaves nothing. Neither
    OpenCV's nor Pillow's nor pycocotools' filling has that: they draw the line itself, or move it.
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
