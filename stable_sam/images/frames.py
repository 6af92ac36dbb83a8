"""Converts between the two frames of an image, original pixels and the model's square input, as SAM and SAM 2 do.

The square holds either the whole image or a window of it (`stable_sam.images.tiles`). Original pixels are always those
of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.bases import Fit
from stable_sam.records import BoxXYXY, Window

Span = tuple[int, int]
"""Pixels along one axis: the first one, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One view of an image in the model's square, padded or stretched as `fit` says."""

    original_hw: tuple[int, int]
    """(height, width) of the whole image in original pixels."""
    side: int
    """Side of the model's input in pixels."""
    window_xywh: Window | None = None
    """The part of the image that is in the square; None for the whole image."""
    fit: Fit = "pad"

    @property
    def region_xywh(self) -> Window:
        """The part of the image that is in the square, also when it is the whole image."""
        height, width = self.original_hw
        return self.window_xywh or (0, 0, width, height)

    @property
    def region_hw(self) -> tuple[int, int]:
        """(height, width), in original pixels, of the part of the image that is in the square."""
        return self.region_xywh[3], self.region_xywh[2]

    @property
    def resized_hw(self) -> tuple[int, int]:
        """(height, width) of the view inside the square: all of it when stretched, otherwise rounded as SAM does but at
        least 1 for a very long image."""
        if self.fit == "stretch":
            return self.side, self.side
        height, width = self.region_hw
        scale = self.side / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def to_model_xy(self, points_xy: NDArray[np.float64]) -> NDArray[np.float32]:
        """Convert points (..., 2) from original pixels to pixels of the model's input."""
        resized_h, resized_w = self.resized_hw
        left, top, width, height = self.region_xywh
        scaled: NDArray[np.float64] = (points_xy - (left, top)) * np.array([resized_w / width, resized_h / height])
        return scaled.astype(np.float32)

    def to_model_xyxy(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float32]:
        """Convert boxes (..., 4) from original pixels to pixels of the model's input."""
        corners = boxes_xyxy.reshape(*boxes_xyxy.shape[:-1], 2, 2)
        return self.to_model_xy(corners).reshape(boxes_xyxy.shape)

    def to_original_xy(self, points_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert points (..., 2) from pixels of the model's input to original pixels. Points in the padding become
        points outside the view."""
        resized_h, resized_w = self.resized_hw
        left, top, width, height = self.region_xywh
        original: NDArray[np.float64] = points_xy * np.array([width / resized_w, height / resized_h]) + (left, top)
        return original

    def object_xyxy(self, logits: NDArray[np.float32]) -> BoxXYXY | None:
        """Return the box in original pixels around the mask of `logits` (h, w), exact to a pixel of the model's input;
        None for an empty mask."""
        inside = self.to_input(logits) > 0
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        corners = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], dtype=np.float64)
        (x0, y0), (x1, y1) = self.to_original_xy(corners).tolist()
        return x0, y0, x1, y1

    def leaves_window(self, logits: NDArray[np.float32]) -> bool:
        """Tell whether the mask of `logits` (h, w) reaches a border of the window that is no border of the image."""
        (height, width), (x, y, w, h) = self.original_hw, self.region_xywh
        inside = self.to_input(logits) > 0
        edges = (
            (x > 0, inside[:, 0]),
            (y > 0, inside[0]),
            (x + w < width, inside[:, -1]),
            (y + h < height, inside[-1]),
        )
        return any(within and edge.any() for within, edge in edges)

    def to_input(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resize logits (h, w) of the decoder to the model's input without padding (`resized_hw`): the first of SAM's
        two steps."""
        resized_h, resized_w = self.resized_hw
        return _resize(logits, (self.side, self.side))[:resized_h, :resized_w]

    def to_original(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resize logits (h, w) of the decoder to original pixels (`region_hw`), bilinearly: in SAM's two steps when the
        view is padded, and in SAM 2's one step when it is stretched.

        OpenCV's resize computes the same as torch's `interpolate`, several times faster. The arrays are transposed so
        that the result is in Fortran order, which run-length encoding needs.
        """
        height, width = self.region_hw
        return _resize(self._last_step(logits).to_input(logits).T, (width, height)).T

    def masks_on_input(self, logits: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
        """Yield K masks in pixels of the model's input: where `to_input` of each of `logits` (K, h, w) is above 0.

        All masks are cut to one rectangle, outside of which all of them are empty.
        """
        span = self._span_above(logits.max(axis=0), 0.0)
        for one in logits:
            yield self._input_part(one, *span) > 0

    def to_original_above(self, logits: NDArray[np.float32], level: float) -> Patch:
        """Compute only the rectangle of `to_original(logits)` that holds all values above `level`.

        The patch's place is that in the whole image. Values below `level` may differ at its edges. It is the smallest
        such rectangle whose corners are pixel corners in both frames, so that its values equal those of `to_original`;
        of a stretched view, corners of the logits' cells take the place of the input's pixel corners. For the image
        sizes of cameras it is a few pixels wider than the object; it has the view's whole height or width when that has
        no factor in common with the model's input, or with the number of cells.
        """
        step = self._last_step(logits)
        wider = [
            _aligned(span, resized, original)
            for span, resized, original in zip(
                step._span_above(logits, level), step.resized_hw, self.region_hw, strict=True
            )
        ]
        (rows, (top, bottom)), (columns, (left, right)) = wider
        if top == bottom or left == right:
            return Patch(np.empty((0, 0), np.float32), 0, 0)
        part = step._input_part(logits, rows, columns)
        x, y, *_ = self.region_xywh
        return Patch(_resize(part.T, (right - left, bottom - top)).T, y + top, x + left)

    def _last_step(self, logits: NDArray[np.float32]) -> Frame:
        """Return the frame from whose input the last step of `to_original` interpolates; the only step of a stretched
        view begins at the cells of `logits` (h, w) themselves."""
        return self if self.fit == "pad" else replace(self, side=len(logits))

    def _span_above(self, logits: NDArray[np.float32], level: float) -> tuple[Span, Span]:
        """Return the rows and columns of `to_input` outside of which nothing is above `level`."""
        above = logits > level
        factor = self.side // len(logits)
        spans = []
        for axis, size in ((1, self.resized_hw[0]), (0, self.resized_hw[1])):
            cells = np.flatnonzero(above.any(axis=axis))
            # A pixel is interpolated from the cells whose centres are less than a cell away.
            low, high = (cells[0] - 1, cells[-1] + 2) if len(cells) else (0, 0)
            low, high = (min(max(int(edge) * factor, 0), size) for edge in (low, high))
            spans.append((low, high))
        return spans[0], spans[1]

    def _input_part(self, logits: NDArray[np.float32], rows: Span, columns: Span) -> NDArray[np.float32]:
        """Compute `to_input(logits)[rows, columns]` without computing the other pixels."""
        factor = self.side // len(logits)
        (top, cell_rows), (left, cell_columns) = (_cells(span, factor, len(logits)) for span in (rows, columns))
        part = logits[cell_rows, cell_columns]
        if part.size == 0:
            return np.empty((0, 0), np.float32)
        resized = _resize(part, (part.shape[0] * factor, part.shape[1] * factor))
        return resized[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Logits in a rectangle of an image."""

    values: NDArray[np.float32]
    """Logits (h, w) in original pixels, in Fortran order."""
    top: int
    """Row of the first pixel in the whole image."""
    left: int
    """Column of the first pixel in the whole image."""


def _cells(span: Span, factor: int, size: int) -> tuple[int, slice]:
    """Return the first pixel and the slice of the cells that `span` is interpolated from, of `factor` pixels each."""
    low, high = span
    first = max(low // factor - 1, 0)
    return first * factor, slice(first, min(-(-high // factor) + 1, size) if high > low else first)


def _aligned(span: Span, resized: int, original: int) -> tuple[Span, Span]:
    """Widen a span of an axis of `resized` pixels by a pixel at each end, and on to the next pixel corners that are
    also pixel corners of an axis of `original` pixels. Returns the span on both axes."""
    low, high = span
    if low == high:
        return (0, 0), (0, 0)
    common = gcd(resized, original)
    step, original_step = resized // common, original // common
    first, last = max(low - 1, 0) // step, min(-(-(high + 1) // step), common)
    return (first * step, last * step), (first * original_step, last * original_step)


def _resize(array: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    resized = cv2.resize(np.ascontiguousarray(array), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)
