"""PNG files of strangers: their size is known before a pixel is decoded, so a small file cannot fill the memory."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_BEGINNING = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) by the header; None for what is no PNG."""
    start = len(_BEGINNING)
    if not data.startswith(_BEGINNING) or len(data) < start + 8:
        return None
    width, height = (int.from_bytes(data[at : at + 4]) for at in (start, start + 4))
    return height, width


def decoded_png(data: bytes, flags: int) -> NDArray[np.integer] | None:
    """The pixels as OpenCV decodes them with these flags, of the size in the header; None for what is no whole PNG.

    Look at `png_size` first.
    """
    if png_size(data) is None:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # OpenCV has limits of its own
        return None
    return pixels  # type: ignore[return-value]  # a PNG holds whole numbers
