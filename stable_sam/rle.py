"""Masks as COCO compressed run lengths, which the table keeps and in which masks are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam.records import BoxXYXY


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMask:
    """A mask in the form of the table's columns."""

    size_hw: tuple[int, int]
    counts: str
    area: int
    bbox_xywh: BoxXYXY
    """Tight box in pixels; (0, 0, 0, 0) when the mask is empty."""


def encode_mask(mask: NDArray[np.bool_]) -> EncodedMask:
    """Encode `mask` (H, W).

    COCO's runs go down the columns: an array in Fortran order (the `.T` of a C-ordered (W, H) array) is encoded as it
    lies, five times faster than a C-ordered one, which has to be copied first.
    """
    rle = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    x, y, w, h = coco_mask.toBbox(rle).tolist()
    height, width = mask.shape
    return EncodedMask(
        size_hw=(height, width),
        counts=rle["counts"].decode("ascii"),
        area=int(coco_mask.area(rle)),
        bbox_xywh=(x, y, w, h),
    )


def decode_mask(size_hw: tuple[int, int], counts: str) -> NDArray[np.bool_]:
    """The mask (H, W), Fortran order, of COCO compressed counts."""
    decoded: NDArray[np.uint8] = coco_mask.decode(_rle(size_hw, counts))
    return decoded.view(np.bool_)


def _rle(size_hw: tuple[int, int], counts: str) -> dict[str, Any]:
    return {"size": list(size_hw), "counts": counts.encode("ascii")}
