"""Reads untrusted PNG files: the header tells the size before a pixel is decoded, so no small file fills the memory."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_BEGINNING = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels from the header; None when `data` is no PNG."""
    start = len(_BEGINNING)
    if not data.startswith(_BEGINNING) or len(data) < start + 8:
        return None
    width, height = (int.from_bytes(data[at : at + 4]) for at in (start, start + 4))
    return height, width


def decoded_png(data: bytes, flags: int) -> NDArray[np.integer] | None:
    """Return the pixels as OpenCV decodes them with `flags`, in the size of the header; None for a damaged PNG.

    Callers have to check `png_size` first, because a PNG of any size is decoded.
    """
    if png_size(data) is None:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # OpenCV has limits of its own
        return None
    return pixels  # type: ignore[return-value]  # a PNG holds whole numbers
