"""Polygons as masks, exactly: a pixel is in when its centre is inside, by the even-odd rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
