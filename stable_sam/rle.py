"""Converts masks to and from COCO compressed run-length encoding (RLE), in which the table stores and compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam.records import BoxXYXY

_OTHER_TEXT = "expected compressed run lengths, got other text"
_NEGATIVE = "expected run lengths that are not negative"
_OTHER_AREA = "expected run lengths that add up to the image"
_MOST_DIGITS = 7
"""Digits of five bits in the longest run length that fits pycocotools, which counts pixels in 32 bits."""
STRIP_PIXELS = 2**18
"""Pixels of a patch that `encode_patch` compares at a time."""
WHOLE_PIXELS = 2**21
"""Most pixels of an image that `encode_patch` encodes whole: a larger one would not stay in the processor's caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMask:
    """A mask in the form of the table's columns: COCO compressed RLE, area in pixels and tight box."""

    size_hw: tuple[int, int]
    counts: str
    area: int
    bbox_xywh: BoxXYXY
    """Tight box in pixels; (0, 0, 0, 0) when the mask is empty."""


def encode_mask(mask: NDArray[np.bool_]) -> EncodedMask:
    """Encode a mask (H, W).

    COCO's runs go down the columns. A mask in Fortran order (the `.T` of a C-ordered (W, H) array) is therefore encoded
    without a copy, five times faster than a C-ordered one.
    """
    return _encoded(coco_mask.encode(np.asfortranarray(mask).view(np.uint8)))


def encode_patch(values: NDArray[np.generic], top: int, left: int, size_hw: tuple[int, int]) -> EncodedMask:
    """Encode a mask of `size_hw` that is known only within a patch of the image and empty outside it.

    values: (h, w) logits or booleans, the mask is where they are above 0; fastest in Fortran order.
    top, left: row and column of the patch's first pixel.
    """
    (height, width), (rows, columns) = size_hw, values.shape
    if 2 * values.size > height * width <= WHOLE_PIXELS:  # COCO's own encoder is faster with the whole image
        whole = np.zeros((height, width), dtype=np.bool_, order="F")
        np.greater(values, 0, out=whole[top : top + rows, left : left + columns])
        return encode_mask(whole)
    at_once = max(1, min(columns, STRIP_PIXELS // (rows + 2)))  # columns that stay in the processor's caches
    framed = np.zeros((at_once, rows + 2), dtype=np.bool_)  # each column lies between two empty pixels
    changes = np.empty((at_once, rows + 1), dtype=np.bool_)
    places = [np.empty(0, np.intp)]
    for first in range(0, columns, at_once):
        strip = values.T[first : first + at_once]
        count = len(strip)
        np.greater(strip, 0, out=framed[:count, 1:-1])
        np.not_equal(framed[:count, 1:], framed[:count, :-1], out=changes[:count])
        places.append(np.flatnonzero(changes[:count]) + first * (rows + 1))
    column, row = np.divmod(np.concatenate(places), rows + 1)
    edges = (left + column) * height + top + row  # alternately where a run of the mask begins and where it ends
    if rows == height:  # a run that continues in the next column ends and begins at the same place
        meet = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
        edges = np.delete(edges, np.concatenate((meet, meet + 1)))
    counts = np.diff(edges, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    return _encoded(coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))


def decode_mask(size_hw: tuple[int, int], counts: str) -> NDArray[np.bool_]:
    """Decode COCO compressed counts to a mask (H, W) in Fortran order."""
    decoded: NDArray[np.uint8] = coco_mask.decode(rle(size_hw, counts))
    return decoded.view(np.bool_)


def rle(size_hw: Sequence[int], counts: str) -> dict[str, Any]:
    """Give a mask's columns in the form that pycocotools takes: `{"size": [h, w], "counts": bytes}`."""
    return {"size": list(size_hw), "counts": counts.encode("ascii")}


def rle_iou(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Compute the IoU of two masks of the same size, each in the form of `rle`; 0 for two empty masks."""
    return float(np.asarray(coco_mask.iou([one], [other], [0]))[0, 0])


def mask_iou(
    size_hw: Sequence[int] | None, counts: str | None, other_size_hw: Sequence[int] | None, other_counts: str | None
) -> float | None:
    """Compute the IoU of two masks from their columns; None when a mask is missing or their sizes differ."""
    if size_hw is None or counts is None or other_size_hw is None or other_counts is None:
        return None
    if tuple(size_hw) != tuple(other_size_hw):
        return None
    return rle_iou(rle(size_hw, counts), rle(other_size_hw, other_counts))


def encode_segmentation(segmentation: Any, size_hw: tuple[int, int]) -> EncodedMask:
    """Encode a COCO segmentation: polygons, filled as pycocotools fills them, uncompressed RLE or compressed RLE.

    Raises ValueError for anything else.
    """
    height, width = size_hw
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, size_hw)
        return _encoded(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if not isinstance(segmentation, dict):
        raise ValueError(f"expected a segmentation, got {segmentation!r:.60}")
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if size != [height, width]:
        raise ValueError(f"expected a mask of its image's size {[height, width]}, got {size!r:.60}")
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError(_OTHER_AREA)
        return _encoded(coco_mask.frPyObjects({"size": size, "counts": counts}, height, width))
    if not isinstance(counts, str):
        raise ValueError(f"expected run lengths, got {counts!r:.60}")
    return _encoded(rle(size_hw, checked_counts(counts, size_hw)))


def checked_counts(counts: str, size_hw: tuple[int, int]) -> str:
    """Return `counts` unchanged; raises ValueError unless they are COCO compressed counts of an image of this size.

    Masks from other people's files must pass this check, because pycocotools writes outside its memory when run lengths
    do not add up to the image.
    """
    if not counts.isascii():
        raise ValueError(_OTHER_TEXT)
    total = value = shift = 0
    runs: list[int] = []
    for character in counts.encode("ascii"):
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError(_OTHER_TEXT)
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            total += runs[-1]
            if runs[-1] < 0:
                raise ValueError(_NEGATIVE)
            value = shift = 0
    if total != size_hw[0] * size_hw[1] or shift:
        raise ValueError(_OTHER_AREA)
    return counts


def check_counts(counts: Sequence[str], areas: Sequence[int]) -> None:
    """Check the counts of N >= 1 masks at once as `checked_counts` does, in a tenth of its time.

    areas: pixels of each mask's image. Raises ValueError.
    """
    text = "".join(counts)
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8) - np.uint8(48)
    if not text.isascii() or (codes > 63).any():  # a character before "0" has wrapped around to a large code
        raise ValueError(_OTHER_TEXT)
    ends = np.flatnonzero(codes < 32) + 1  # a number ends with a digit that lacks the bit for "more digits follow"
    bounds = np.cumsum([len(one) for one in counts])  # where the text of each mask ends
    digits = np.diff(ends, prepend=0)
    last = np.searchsorted(ends, bounds)  # (N,) index of the number with which each text ends
    sizes = np.diff(last, prepend=-1)
    if (sizes < 1).any() or len(ends) <= last[-1] or (ends[last] != bounds).any() or digits.max() > _MOST_DIGITS:
        raise ValueError(_OTHER_AREA)
    starts = ends - digits
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, digits))
    values = np.add.reduceat((codes & 31).astype(np.int64) << shifts, starts)
    values -= (codes[ends - 1] >> 4 & 1).astype(np.int64) << 5 * digits  # the last digit holds the sign
    # COCO writes each number from the fourth on as its difference to the number before the last one. Cumulative sums
    # over every other number undo this for all texts; what the sum was before a text began is then subtracted.
    sums = np.empty_like(values)
    sums[0::2], sums[1::2] = values[0::2].cumsum(), values[1::2].cumsum()
    first = last - sizes + 1
    second = np.minimum(first + 1, last)
    place = np.arange(len(values)) - np.repeat(first, sizes)
    runs = sums - np.where(place % 2, np.repeat((sums - values)[second], sizes), np.repeat(sums[first], sizes))
    runs[first] = values[first]
    if (runs < 0).any():
        raise ValueError(_NEGATIVE)
    if (np.add.reduceat(runs, first) != areas).any():
        raise ValueError(_OTHER_AREA)


def _check_polygon(polygon: Any, size_hw: tuple[int, int]) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("expected a polygon of at least 3 corners")
    # pycocotools takes memory for every pixel that the line passes.
    if not all(isinstance(value, int | float) and abs(value) <= 10 * max(size_hw) for value in polygon):
        raise ValueError("expected a polygon of numbers, near the image")


def _encoded(mask: dict[str, Any]) -> EncodedMask:
    x, y, w, h = coco_mask.toBbox(mask).tolist()
    counts = mask["counts"] if isinstance(mask["counts"], str) else mask["counts"].decode("ascii")
    height, width = mask["size"]
    return EncodedMask(size_hw=(height, width), counts=counts, area=int(coco_mask.area(mask)), bbox_xywh=(x, y, w, h))
