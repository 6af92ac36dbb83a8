"""Reads Label Studio's bitmasks: a PNG of the whole image in a data URL, `data:image/png;base64,...`.

A pixel is painted when it is at least half opaque; in a PNG without transparency, when it is at least half bright.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import PromptError
from stable_sam.formats.png.header import decoded_png, png_size

PREFIX = "data:image/png;base64,"
MAX_PIXELS = 200_000_000
"""Largest number of pixels of a mask that is decoded: 800 MB with transparency."""


def decode_bitmask(url: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the painted pixels, bool (H, W); raises `PromptError` unless `url` holds a PNG of that size."""
    if not isinstance(url, str) or not url.startswith(PREFIX):
        raise PromptError(f"expected a bitmask as {PREFIX}..., got {url!r:.40}")
    try:
        data = base64.b64decode(url.removeprefix(PREFIX))
    except binascii.Error:
        raise PromptError("expected a bitmask in base64, got other text") from None
    size = png_size(data)
    if size != size_hw or size[0] * size[1] > MAX_PIXELS:
        shown = "no PNG" if size is None else f"{size[1]} x {size[0]}"
        raise PromptError(f"expected a bitmask of {size_hw[1]} x {size_hw[0]} pixels, got {shown}")
    pixels = decoded_png(data, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise PromptError("expected a bitmask, got a damaged PNG")
    half = np.iinfo(pixels.dtype).max // 2
    layers = np.greater(np.atleast_3d(pixels), half)
    transparent = layers.shape[2] == 4 and not layers[..., 3].all()
    return np.asarray(layers[..., slice(3, 4) if transparent else slice(0, 3)].any(axis=2), np.bool_)


def bitmask_box(url: Any, size_hw: tuple[int, int]) -> list[int] | None:
    """Return the box (XYXY) around the painted pixels, None when nothing is painted.

    Raises what `decode_bitmask` raises.
    """
    mask = decode_bitmask(url, size_hw)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
