"""Label Studio's brush masks read back: see `write_brush_rle`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.brush_rle import painted_runs


def decode_brush(packed: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of packed bytes (a list of numbers 0..255); raises ValueError when they are none of that size."""
    runs = painted_runs(packed, *size_hw)
    pixels = np.zeros(size_hw[0] * size_hw[1], np.bool_)
    for first, behind in runs:
        pixels[first:behind] = True
    return pixels.reshape(size_hw)
