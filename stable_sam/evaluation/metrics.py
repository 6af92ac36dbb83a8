"""Mask IoU, boundary IoU, and the IoU of masks with their union.

Masks are compared in the tight box of one of them, outside of which there is nothing to intersect. So the cost of a
comparison grows with the object and not with the image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY_RATIO = 0.02
"""Width of the boundary band as a fraction of the image diagonal (Cheng et al. 2021), also of HQ-SAM's mBIoU."""

Mask = NDArray[np.bool_]
"""(H, W), true on the object."""


def boundary_distance(image_hw: tuple[int, int], ratio: float = BOUNDARY_RATIO) -> int:
    """Return the width of the boundary band in pixels, at least 1."""
    return max(1, round(ratio * float(np.hypot(*image_hw))))


class ReferenceMask:
    """A mask that many others are compared with; its boundary is computed once."""

    def __init__(self, mask: Mask, ratio: float = BOUNDARY_RATIO) -> None:
        """Compute the area and the boundary of `mask` (H, W)."""
        self.mask = mask.view(np.uint8)
        self.area = int(np.count_nonzero(mask))
        self.distance = boundary_distance((mask.shape[0], mask.shape[1]), ratio)
        self.boundary = np.zeros_like(self.mask)
        window = tight_window(mask)
        if window is not None:
            self.boundary[window] = _boundary(self.mask[window], self.distance)
        self.boundary_area = int(np.count_nonzero(self.boundary))

    def compare(self, mask: Mask) -> tuple[float, float]:
        """Return the IoU and the boundary IoU of this mask with `mask`, which has the same (H, W)."""
        window = tight_window(mask)
        if window is None:
            return (1.0, 1.0) if self.area == 0 else (0.0, 0.0)
        part = mask.view(np.uint8)[window]
        boundary = _boundary(part, self.distance)
        return (
            _iou(part, self.mask[window], self.area),
            _iou(boundary, self.boundary[window], self.boundary_area),
        )

    def iou(self, mask: Mask) -> float:
        """Return the IoU of this mask with `mask`, which has the same (H, W), without the cost of the boundary."""
        window = tight_window(mask)
        if window is None:
            return 1.0 if self.area == 0 else 0.0
        return _iou(mask.view(np.uint8)[window], self.mask[window], self.area)


class MaskUnion:
    """The union of masks (H, W), which are added one at a time because many of a large image do not fit in memory."""

    def __init__(self, image_hw: tuple[int, int]) -> None:
        self._union = np.zeros(image_hw, dtype=np.bool_)
        self._areas: list[int] = []

    def add(self, mask: Mask) -> None:
        """Add `mask` (H, W) to the union."""
        self._areas.append(int(np.count_nonzero(mask)))
        np.logical_or(self._union, mask, out=self._union)

    def ious(self) -> list[float]:
        """Return the IoU of each mask with the union, in the order in which they were added; their mean is mSF.

        Every mask lies inside the union, so IoU(M_i, M_union) = |M_i| / |M_union|.
        """
        union_area = int(np.count_nonzero(self._union))
        return [area / union_area if union_area else 0.0 for area in self._areas]


def tight_window(mask: Mask) -> tuple[slice, slice] | None:
    """Return the rows and columns of the tight box of `mask` (H, W); None for an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (slice(y, y + height), slice(x, x + width)) if width else None


def _iou(part: NDArray[np.uint8], reference_part: NDArray[np.uint8], reference_area: int) -> float:
    intersection = int(np.count_nonzero(part & reference_part))
    return intersection / (int(np.count_nonzero(part)) + reference_area - intersection)


def _boundary(mask: NDArray[np.uint8], distance: int) -> NDArray[np.uint8]:
    """The pixels of a tightly cropped mask within `distance` of its outside, which begins at the border of the crop."""
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    eroded = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~np.asarray(eroded, dtype=np.uint8)
