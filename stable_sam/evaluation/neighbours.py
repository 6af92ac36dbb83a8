"""What the other objects of a picture are to an object: the whole it is a part of, and the one next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam.evaluation.true_masks import TruthObject

CONTAINED = 0.9
"""An object of which this much lies in another one is a part of it, unless the other lies in it as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Indices among the objects of the picture; None where there is no such object."""

    whole: int | None
    """The largest object that this one is a part of."""
    nearest: int | None
    """The object whose box is nearest, of those that are neither part nor whole of this one."""


def find_neighbours(objects: Sequence[TruthObject]) -> list[Neighbours]:
    """The neighbours of each of `objects`, all of one picture."""
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
    """(N, N): pixels between the boxes' nearest edges; of boxes that touch, a fraction that grows with the centres'
    distance."""
    centre = boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2
    apart = np.abs(centre[:, None] - centre[None])
    gap = np.maximum(apart - (boxes_xywh[:, None, 2:] + boxes_xywh[None, :, 2:]) / 2, 0)
    far = np.hypot(apart[..., 0], apart[..., 1])
    distance: NDArray[np.float64] = np.hypot(gap[..., 0], gap[..., 1]) + far / (1 + far.max())
    return distance
