"""Find the neighbours of an object: the object that it is a part of, and the nearest other object of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam.evaluation.true_masks import TruthObject

CONTAINED = 0.9
"""Fraction of an object that lies in another one when it is a part of it, unless the other lies in it as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Neighbours of an object, as indices among the objects of its image; None where there is no such object."""

    whole: int | None
    """The largest object that the object is a part of."""
    nearest: int | None
    """The object with the nearest box, of those that are neither a part nor the whole of the object."""


def find_neighbours(objects: Sequence[TruthObject]) -> list[Neighbours]:
    """Return the neighbours of each of `objects`, which are all objects of one image."""
    if len(objects) < 2:
        return [Neighbours(whole=None, nearest=None)] * len(objects)
    rles = [item.rle for item in objects]
    # COCO's IoU with a crowd is |a and b| / |a|.
    contained = coco_mask.iou(rles, rles, [1] * len(rles)) >= CONTAINED
    part_of = contained & ~contained.T
    areas = coco_mask.area(rles).astype(np.float64)
    apart = ~(contained | contained.T)
    distances = np.where(apart, _box_distances(coco_mask.toBbox(rles)), np.inf)
    return [
        Neighbours(
            whole=int(np.where(part_of[n], areas, 0).argmax()) if part_of[n].any() else None,
            nearest=int(distances[n].argmin()) if apart[n].any() else None,
        )
        for n in range(len(objects))
    ]


def _box_distances(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, N): pixels between the nearest edges of two boxes, plus a fraction of a pixel that grows with the distance of
    their centres, which orders boxes that touch."""
    centre = boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2
    apart = np.abs(centre[:, None] - centre[None])
    gap = np.maximum(apart - (boxes_xywh[:, None, 2:] + boxes_xywh[None, :, 2:]) / 2, 0)
    far = np.hypot(apart[..., 0], apart[..., 1])
    distance: NDArray[np.float64] = np.hypot(gap[..., 0], gap[..., 1]) + far / (1 + far.max())
    return distance
