"""Computes the box around a COCO `segmentation`, for annotations that have a mask and no box."""

from __future__ import annotations

from itertools import chain
from typing import Any

from stable_sam.errors import PromptError
from stable_sam.formats.reading import bounds, is_number
from stable_sam.rle import encode_segmentation

MAX_PIXELS = 2**31
"""Largest number of pixels of a mask in run lengths, because pycocotools counts in 32 bits."""


def mask_box_xywh(segmentation: Any, size_hw: tuple[int, int] | None) -> list[float] | None:
    """Return the box (XYWH in pixels) around a mask, None when there is no segmentation.

    `segmentation` is polygons or run lengths (compressed or not); `size_hw` is the (height, width) of the image, None
    when it is not known. Raises `PromptError` for any other segmentation, for an empty mask, and for run lengths of
    another size than the image's.
    """
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        x0, y0, x1, y1 = _around(segmentation if isinstance(segmentation[0], list) else [segmentation])
        return [x0, y0, x1 - x0, y1 - y0]
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise PromptError(
            f"expected polygons, or run lengths with their size, as segmentation, got {segmentation!r:.80}"
        )
    if size[0] * size[1] > MAX_PIXELS:
        raise PromptError(f"expected a mask of at most {MAX_PIXELS} pixels, got {size[1]} x {size[0]}")
    try:
        mask = encode_segmentation(segmentation, size_hw or (size[0], size[1]))
    except ValueError as error:
        raise PromptError(f"segmentation: {error}") from None
    if mask.area == 0:
        raise PromptError("the mask is empty, and there is no box")
    return list(mask.bbox_xywh)


def _around(polygons: list[Any]) -> list[Any]:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
            raise PromptError(f"expected polygons of at least 3 corners as segmentation, got {polygon!r:.80}")
    values = list(chain.from_iterable(polygons))
    return bounds([values[at : at + 2] for at in range(0, len(values), 2)]) or []
